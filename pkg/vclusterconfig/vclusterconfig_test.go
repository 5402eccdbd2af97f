// SPDX-License-Identifier: Apache-2.0

package vclusterconfig

import (
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"dbconnector/pkg/fault"
)

const (
	testDSN = "postgres://vcabca:a-b_c.d~E1@[::1]:5432/vcabc?sslmode=verify-full"
	testCA  = "/var/run/dbconnector/ca.crt"
)

func edit(source []byte, dsn, caFile string) ([]byte, error) {
	c, err := Parse(source)
	if err != nil {
		return nil, err
	}
	return c.Edit(dsn, caFile)
}

func connectorName(source []byte) (string, error) {
	c, err := Parse(source)
	if err != nil {
		return "", err
	}
	return c.Connector()
}

func TestEditConfig(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ caFile, source, want string }{
		"embedded": {
			source: "controlPlane:\n  backingStore:\n    database:\n      embedded:\n        enabled: true\n",
			want:   "controlPlane:\n  backingStore:\n    database:\n      embedded:\n        enabled: true\n        dataSource: \"DSN\"\n",
		},
		"external, the connector goes": {
			caFile: testCA,
			source: "controlPlane:\n  backingStore:\n    database:\n      external:\n        connector: pg\n        enabled: true\n",
			want: "controlPlane:\n  backingStore:\n    database:\n      external:\n        enabled: true\n" +
				"        dataSource: \"DSN\"\n        caFile: \"/var/run/dbconnector/ca.crt\"\n",
		},
		"placeholder and caFile are replaced where they are, comments stay": {
			caFile: testCA,
			source: "# top\ncontrolPlane:\n  backingStore:\n    database:\n      embedded:\n        # why\n" +
				"        caFile: /old # ca\n        dataSource: PLACEHOLDER # ds\n        enabled: true\n",
			want: "# top\ncontrolPlane:\n  backingStore:\n    database:\n      embedded:\n        # why\n" +
				"        caFile: \"/var/run/dbconnector/ca.crt\" # ca\n        dataSource: \"DSN\" # ds\n" +
				"        enabled: true\n",
		},
		"without a CA of ours, the user's stays": {
			source: "controlPlane: {backingStore: {database: {embedded: {enabled: true, caFile: /mine}}}}\n",
			want:   "controlPlane: {backingStore: {database: {embedded: {enabled: true, caFile: /mine, dataSource: \"DSN\"}}}}\n",
		},
		"values that are easily taken for others": {
			source: "a: .nan\nb: <<\nc: '<<'\ncontrolPlane: {backingStore: {database: {embedded: {enabled: true}}}}\n",
			want:   "a: .nan\nb: <<\nc: '<<'\ncontrolPlane: {backingStore: {database: {embedded: {enabled: true, dataSource: \"DSN\"}}}}\n",
		},
		"no data source, in so many words": {
			source: "controlPlane: {backingStore: {database: {embedded: {enabled: true, dataSource: ''}, external: {dataSource: ~}}}}\n",
			want:   "controlPlane: {backingStore: {database: {embedded: {enabled: true, dataSource: \"DSN\"}, external: {dataSource: ~}}}}\n",
		},
		"no identity provider": {
			source: "controlPlane: {backingStore: {database: {external: {identityProvider: aws}, embedded: {enabled: true, identityProvider: ''}}}}\n",
			want: "controlPlane: {backingStore: {database: {external: {identityProvider: aws}, embedded: {enabled: true, " +
				"identityProvider: '', dataSource: \"DSN\"}}}}\n",
		},
		"case does not matter elsewhere": {
			source: "controlPlane: {backingStore: {database: {embedded: {enabled: true}}}, ingress: {Enabled: true}}\nDATABASES: {}\n",
			want:   "controlPlane: {backingStore: {database: {embedded: {enabled: true, dataSource: \"DSN\"}}}, ingress: {Enabled: true}}\nDATABASES: {}\n",
		},
		"the other store keeps its fields": {
			source: "controlPlane:\n  backingStore:\n    database:\n      external:\n        connector: pg\n" +
				"        dataSource: mysql://x\n        enabled: false\n      embedded:\n        enabled: true\n",
			want: "controlPlane:\n  backingStore:\n    database:\n      external:\n        connector: pg\n" +
				"        dataSource: mysql://x\n        enabled: false\n      embedded:\n        enabled: true\n" +
				"        dataSource: \"DSN\"\n",
		},
		"unknown fields, order, quoting and odd scalars stay": {
			source: "zeta: 'quoted'\nalpha: \"double\"\noctal: 0640\nno: off\ntime: 12:30:45\nversion: 1.10\n" +
				"big: 12345678901234567890\nblock: |\n  a\n   b\nfold: >-\n  one\n  two\ncontrolPlane:\n" +
				"  backingStore:\n    database:\n      embedded:\n        enabled: yes\n" +
				"        extraArgs: [--a, '--b']\n",
			want: "zeta: 'quoted'\nalpha: \"double\"\noctal: 0640\nno: off\ntime: 12:30:45\nversion: 1.10\n" +
				"big: 12345678901234567890\nblock: |\n  a\n   b\nfold: >-\n  one two\ncontrolPlane:\n" +
				"  backingStore:\n    database:\n      embedded:\n        enabled: yes\n" +
				"        extraArgs: [--a, '--b']\n        dataSource: \"DSN\"\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := edit([]byte(strings.ReplaceAll(test.source, "PLACEHOLDER", Placeholder)), testDSN, test.caFile)
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.ReplaceAll(test.want, "DSN", testDSN); string(got) != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestEditConfigRefusals(t *testing.T) {
	t.Parallel()
	const head = "controlPlane:\n  backingStore:\n    database:\n"
	const embedded = head + "      embedded:\n        enabled: true\n"
	for name, test := range map[string]struct{ source, want string }{
		"empty":           {"", "no store is enabled: set controlPlane.backingStore.database.embedded.enabled"},
		"null":            {"null", "no store is enabled"},
		"comment only":    {"# nothing\n", "no store is enabled"},
		"no store":        {"controlPlane: {}", "no store is enabled"},
		"null on the way": {"controlPlane:\n  backingStore:\n", "no store is enabled"},
		"disabled":        {head + "      embedded:\n        enabled: false\n", "no store is enabled"},
		"connector alone": {head + "      external:\n        connector: pg\n", "no store is enabled"},
		"both": {
			embedded + "      external: {enabled: true}\n",
			"more than one store is enabled: controlPlane.backingStore.database.external, controlPlane.backingStore.database.embedded",
		},
		"etcd besides": {
			embedded + "    etcd: {embedded: {enabled: true}}\n",
			"more than one store is enabled: controlPlane.backingStore.database.embedded, controlPlane.backingStore.etcd.embedded",
		},
		"etcd deployed": {
			"controlPlane: {backingStore: {etcd: {deploy: {enabled: true}}}}",
			"controlPlane.backingStore.etcd.deploy is enabled, which takes no database",
		},
		"etcd external":       {"controlPlane: {backingStore: {etcd: {external: {enabled: true}}}}", "controlPlane.backingStore.etcd.external is enabled"},
		"enabled as string":   {head + "      embedded: {enabled: \"true\"}\n", "controlPlane.backingStore.database.embedded.enabled: must be true or false"},
		"enabled misspelt":    {head + "      embedded: {enabled: trUe}\n", "controlPlane.backingStore.database.embedded.enabled: must be true or false"},
		"enabled as number":   {head + "      external: {enabled: 1}\n", "controlPlane.backingStore.database.external.enabled: must be true or false"},
		"enabled as list":     {head + "      external: {enabled: [true]}\n", "controlPlane.backingStore.database.external.enabled: must be true or false"},
		"store as list":       {head + "      embedded: [true]\n", "controlPlane.backingStore.database.embedded: must be a mapping"},
		"store as string":     {"controlPlane: {backingStore: {database: embedded}}", "controlPlane.backingStore.database: must be a mapping"},
		"root as list":        {"- a\n", "must be a mapping"},
		"root as string":      {"hunter2", "must be a mapping"},
		"not YAML":            {embedded + "  x: [hunter2\n", "is not YAML"},
		"tabs":                {"a:\n\tb: hunter2\n", "is not YAML, line 2"},
		"binary":              {"\x00\x01\x02", "is not YAML"},
		"bad tag":             {embedded + "x: !!int hunter2\n", "is not YAML"},
		"two documents":       {embedded + "---\na: 1\n", "must be one YAML document"},
		"garbage after it":    {embedded + "...\n[hunter2\n", "must be one YAML document"},
		"duplicate key":       {embedded + "        enabled: false\n", "has a key twice, line 6"},
		"duplicate root":      {embedded + "controlPlane: {}\n", "has a key twice"},
		"unknown anchor":      {embedded + "x: *hunter2\n", "is not YAML"},
		"alias of itself":     {embedded + "x: &a [*a]\n", "has an anchor (&), an alias (*) or a merge (<<)"},
		"billion laughs":      {laughs() + embedded, "has an anchor (&), an alias (*) or a merge (<<)"},
		"anchor":              {"a: &a hunter2\n" + embedded, "line 1: has an anchor (&)"},
		"alias":               {"a: &a {x: 1}\nb: *a\n" + embedded, "has an anchor (&), an alias (*) or a merge (<<)"},
		"merge":               {"a: &a {x: hunter2}\nc:\n  <<: *a\n" + embedded, "has an anchor (&), an alias (*) or a merge (<<)"},
		"merge of a mapping":  {"c:\n  <<: {x: hunter2}\n" + embedded, "line 2: has an anchor (&), an alias (*) or a merge (<<)"},
		"store is an alias":   {"a: &a\n  enabled: true\n  connector: pg\n" + head + "      external: *a\n", "has an anchor (&)"},
		"store is shared":     {head + "      external: &a\n        enabled: true\nb: *a\n", "has an anchor (&)"},
		"merged on the way":   {"a: &a\n  backingStore:\n    database: {embedded: {enabled: true}}\ncontrolPlane:\n  <<: *a\n", "has an anchor (&)"},
		"key of another type": {embedded + "        12: hunter2\n", "line 6: has a key that is not a string"},
		"key that is a list":  {embedded + "        ? [hunter2]\n        : x\n", "is not YAML"},
		// F1. A control plane with data there would start on an empty database. Only the shipped values name no such store.
		"store is named": {
			embedded + "        dataSource: postgres://admin:hunter2@db/x\n",
			"controlPlane.backingStore.database.embedded.dataSource: names a store of its own",
		},
		"store is named merged": {
			"a: &a {dataSource: 'mysql://root:hunter2@tcp(db)/x'}\n" + embedded + "        <<: *a\n",
			"has an anchor (&), an alias (*) or a merge (<<)",
		},
		"store without a scheme":    {embedded + "        dataSource: hunter2\n", "dataSource: names a store of its own"},
		"store is a number":         {embedded + "        dataSource: 12\n", "dataSource: names a store of its own"},
		"store is white space":      {embedded + "        dataSource: ' '\n", "dataSource: names a store of its own"},
		"SQLite is named":           {embedded + "        dataSource: sqlite:///data/hunter2.db\n", "dataSource: names a store of its own"},
		"placeholder with an end":   {embedded + "        dataSource: '" + Placeholder + "/hunter2'\n", "dataSource: names a store of its own"},
		"placeholder in upper case": {embedded + "        dataSource: '" + strings.ToUpper(Placeholder) + "'\n", "dataSource: names a store of its own"},
		"external store is named":   {head + "      external: {enabled: true, dataSource: hunter2}\n", "external.dataSource: names a store of its own"},
		// F1. vCluster lets extraArgs outweigh its own arguments, and kine takes one dash for two.
		"endpoint as an argument":  {embedded + "        extraArgs: [--log-format=json, --endpoint=sqlite://hunter2]\n", "embedded.extraArgs: has --endpoint"},
		"endpoint, then its value": {embedded + "        extraArgs: [--endpoint, hunter2]\n", "extraArgs: has --endpoint"},
		"endpoint with one dash":   {embedded + "        extraArgs: [-endpoint=hunter2]\n", "extraArgs: has --endpoint"},
		"endpoint as an alias":     {"a: &a --endpoint=hunter2\n" + embedded + "        extraArgs: [*a]\n", "has an anchor (&), an alias (*) or a merge (<<)"},
		"endpoint, merged": {
			"a: &a {extraArgs: [--endpoint=hunter2]}\n" + embedded + "        <<: *a\n",
			"has an anchor (&), an alias (*) or a merge (<<)",
		},
		"arguments that are no list":  {embedded + "        extraArgs: --endpoint=hunter2\n", "extraArgs: must be a list"},
		"arguments of another's case": {embedded + "        ExtraArgs: [--endpoint=hunter2]\n", "embedded.ExtraArgs: must be written extraArgs"},
		// vCluster reads a key without regard to its case, and of two the last one.
		"second data source": {
			head + "      embedded: {enabled: true, DataSource: 'mysql://root:hunter2@tcp(db)/x'}\n",
			"controlPlane.backingStore.database.embedded.DataSource: must be written dataSource",
		},
		"case, enabled": {
			head + "      embedded: {enabled: true}\n      external: {Enabled: true}\n",
			"controlPlane.backingStore.database.external.Enabled: must be written enabled",
		},
		"case, CA":         {embedded + "        cafile: /hunter2\n", "embedded.cafile: must be written caFile"},
		"case, connector":  {head + "      external: {enabled: true, Connector: pg}\n", "external.Connector: must be written connector"},
		"case, tokens":     {embedded + "        identityprovider: aws\n", "embedded.identityprovider: must be written identityProvider"},
		"case, merged":     {"a: &a {DATASOURCE: hunter2}\n" + embedded + "        <<: *a\n", "has an anchor (&), an alias (*) or a merge (<<)"},
		"case, Unicode's":  {head + "      embedded: {enabled: true, data\u017fource: hunter2}\n", "must be written dataSource"},
		"case, on the way": {embedded + "ControlPlane: {}\n", "ControlPlane: must be written controlPlane"},
		"case, the store":  {embedded + "      External: {enabled: true}\n", "controlPlane.backingStore.database.External: must be written external"},
		"case, etcd":       {embedded + "    Etcd: {deploy: {enabled: true}}\n", "controlPlane.backingStore.Etcd: must be written etcd"},
		"tokens":           {embedded + "        identityProvider: aws\n", "controlPlane.backingStore.database.embedded.identityProvider: is set"},
		"tokens, merged": {
			"a: &a {identityProvider: aws}\n" + head + "      external: {<<: *a, enabled: true}\n",
			"has an anchor (&), an alias (*) or a merge (<<)",
		},
		"tokens as a mapping": {embedded + "        identityProvider: {password: hunter2}\n", "embedded.identityProvider: is set"},
		"store as mapping":    {embedded + "        dataSource: {password: hunter2}\n", "controlPlane.backingStore.database.embedded.dataSource: must be a string"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := edit([]byte(test.source), testDSN, testCA)
			switch {
			case err == nil:
				t.Fatalf("accepted:\n%s", got)
			case !fault.Is(err, fault.Refused):
				t.Errorf("class %v, want Refused", fault.Of(err))
			case !strings.Contains(err.Error(), test.want):
				t.Errorf("got %q, want it to contain %q", err, test.want)
			case strings.Contains(err.Error(), "hunter2"), strings.Contains(err.Error(), testDSN):
				t.Errorf("repeats a value: %q", err) // B20
			}
		})
	}
}

// TestUnguardedStore: an embedded store that would be SQLite without the hand-over is told of (F1).
func TestUnguardedStore(t *testing.T) {
	t.Parallel()
	for store, warns := range map[string]bool{
		"embedded: {enabled: true}":                                        true,
		"embedded: {enabled: true, dataSource: ''}":                        true,
		"embedded: {enabled: true, dataSource: '" + Placeholder + "'}":     false,
		"external: {enabled: true}":                                        false, // vCluster refuses to start so
		"external: {enabled: true}, embedded: {dataSource: 'a://hunter2'}": false,
	} {
		c, err := Parse([]byte("controlPlane: {backingStore: {database: {" + store + "}}}"))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // an edit changes nothing of it
			if _, err := c.Edit(testDSN, ""); err != nil {
				t.Fatal(err)
			}
			if got := c.Warnings(); (len(got) > 0) != warns || warns && !strings.Contains(got[0], Placeholder) {
				t.Errorf("%s: warnings %q, want some: %v", store, got, warns)
			}
		}
	}
}

// TestSocketDataSource: the data source of a socket may stand in a config, where the mode is that. A conflict between the two is refused, with
// the way out, and so is TLS to the socket.
func TestSocketDataSource(t *testing.T) {
	t.Parallel()
	const own, similar, real = "postgres://vcluster@/state?host=/run/d&sslmode=disable", "postgres://vcluster@/state?host=/run/e&sslmode=disable", "DSN"
	socket := func(source, dsn string) (bool, string) {
		if dsn != "" && dsn != real {
			t.Errorf("asked about %q", dsn)
		}
		return source == own, map[bool]string{true: "is similar"}[source == similar]
	}
	const lifetime = ", extraArgs: [--datastore-connection-max-lifetime=10m]"
	for name, test := range map[string]struct {
		store   string
		socket  bool
		refusal string
		warning string
	}{
		"own":                    {"dataSource: '" + own + "'" + lifetime, true, "", ""},
		"placeholder":            {"dataSource: '" + Placeholder + "'" + lifetime, true, "", ""},
		"sessions for ever":      {"dataSource: '" + own + "'", true, "", "--datastore-connection-max-lifetime"},
		"similar":                {"dataSource: '" + similar + "'", true, "embedded.dataSource: is similar; correct one of the two, or write \"" + Placeholder, ""},
		"another":                {"dataSource: 'mysql://x:hunter2@tcp(y)/z'", true, "names a store of its own", ""},
		"another mode":           {"dataSource: '" + own + "'", false, "names a socket, and DBCONNECTOR_ADOPT is not socket; correct one of the two", ""},
		"another mode, MySQL":    {"dataSource: 'mysql://vcluster@unix(/run/d/mysql.sock)/vcx'", false, "names a socket", ""},
		"another mode, loopback": {"dataSource: 'mysql://vcluster@tcp(127.0.0.1:3306)/vcx'", false, "names a socket", ""},
		"TLS":                    {"caFile: /ca.crt", true, "embedded.caFile: is set, and DBCONNECTOR_ADOPT=socket", ""},
		"a client's certificate": {"certFile: /c, keyFile: /k", true, "embedded.certFile: is set", ""},
		"no TLS":                 {"caFile: '', certFile: ~" + lifetime, true, "", "is empty"},
	} {
		c, err := Parse([]byte("controlPlane: {backingStore: {database: {embedded: {enabled: true, " + test.store + "}}}}"))
		if err != nil {
			t.Fatal(name, err)
		}
		if test.socket {
			c.Socket = socket
		}
		_, err = c.Edit(real, "")
		if early := c.check(""); (err == nil) != (early == nil) {
			t.Errorf("%s: at first %v, at last %v", name, early, err)
		}
		switch {
		case test.refusal == "":
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := c.Warnings(); (len(got) > 0) != (test.warning != "") || len(got) > 0 && !strings.Contains(got[0], test.warning) {
				t.Errorf("%s: warnings %q, want %q", name, got, test.warning)
			}
		case err == nil || !strings.Contains(err.Error(), test.refusal) || strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%s: got %v, want %q", name, err, test.refusal)
		}
	}
}

// TestLogFile: a log file of vCluster's holds the password, and is told of (F28).
func TestLogFile(t *testing.T) {
	t.Parallel()
	const store = "controlPlane: {backingStore: {database: {embedded: {enabled: true, dataSource: '" + Placeholder + "'}}}}\n"
	for logging, warns := range map[string]bool{
		"":                                   false,
		"logging: {file: {enabled: true}}":   true,
		"logging: {file: {enabled: yes}}":    true,
		"logging: {file: {enabled: false}}":  false,
		"logging: {encoding: json}":          false,
		"logging: {file: {enabled: 'true'}}": false,
		"logging: {file: [enabled]}":         false,
	} {
		c, err := Parse([]byte(store + logging))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Edit(testDSN, ""); err != nil {
			t.Fatal(err)
		}
		if got := c.Warnings(); (len(got) > 0) != warns || warns && !strings.Contains(got[0], "logging.file.enabled is true") {
			t.Errorf("%s: warnings %q, want one: %v", logging, got, warns)
		}
	}
}

// TestBudget: a file that costs more memory or time than the container has is refused, and one just below works. (Measured at
// the limit, with the program's other parts: 44 MiB at most, and half a second.)
func TestBudget(t *testing.T) {
	t.Parallel()
	const embedded = "controlPlane: {backingStore: {database: {embedded: {enabled: true}}}}\n" // 10 values, 5 levels
	keys := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "k%d: a\n", i)
		}
		return b.String()
	}
	for name, test := range map[string]struct{ source, want string }{
		"as large as it may be":  {embedded + "# " + strings.Repeat("x", MaxSize-len(embedded)-2), ""},
		"too large":              {embedded + "# " + strings.Repeat("x", MaxSize-len(embedded)-1), "is larger than 262144 bytes"},
		"many keys":              {embedded + keys(maxValues/2-10), ""},
		"too many keys":          {embedded + keys(maxValues/2), "more than 8000 values"},
		"too long a list":        {embedded + "x: [" + strings.Repeat("a,", maxValues) + "]", "more than 8000 values"},
		"deep":                   {embedded + "x: " + strings.Repeat("[", maxDepth-2) + strings.Repeat("]", maxDepth-2), ""},
		"too deep":               {embedded + "x: " + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), "more than 100 levels"},
		"too deep for the stack": {embedded + "x: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "more than 100 levels"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := edit([]byte(test.source), testDSN, testCA)
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (!fault.Is(err, fault.Refused) || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestEditTwice: an edit leaves nothing behind for the next one.
func TestEditTwice(t *testing.T) {
	t.Parallel()
	source := []byte("controlPlane: {backingStore: {database: {external: {enabled: true, connector: pg, caFile: /mine}}}}\n")
	c, err := Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	for _, caFile := range []string{testCA, "", testCA} {
		got, err := c.Edit(testDSN, caFile)
		if err != nil {
			t.Fatal(err)
		}
		want, err := edit(source, testDSN, caFile)
		if err != nil || string(got) != string(want) {
			t.Errorf("caFile %q: got %s\nwant %s (%v)", caFile, got, want, err)
		}
		if name, err := c.Connector(); name != "pg" || err != nil {
			t.Errorf("the connector became %q, %v", name, err)
		}
	}
}

// laughs is a document that is small and decodes to a billion nodes.
func laughs() string {
	var b strings.Builder
	b.WriteString("l0: &l0 lol\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&b, "l%d: &l%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d,", i-1), 10), ","))
	}
	return b.String()
}

func TestConnectorName(t *testing.T) {
	t.Parallel()
	const external = "controlPlane:\n  backingStore:\n    database:\n      external:\n"
	for name, test := range map[string]struct{ source, want, refusal string }{
		"none":          {"", "", ""},
		"null":          {external + "        connector:\n", "", ""},
		"empty":         {external + "        connector: \"\"\n", "", ""},
		"enabled":       {external + "        connector: pg\n        enabled: true\n", "pg", ""},
		"not enabled":   {external + "        connector: pg\n        enabled: false\n", "pg", ""},
		"quoted number": {external + "        connector: \"12\"\n", "12", ""},
		"merged":        {"a: &a {connector: pg}\n" + external + "        <<: *a\n", "", "has an anchor (&), an alias (*) or a merge (<<)"},
		"number":        {external + "        connector: 12\n", "", "controlPlane.backingStore.database.external.connector: must be a string"},
		"mapping":       {external + "        connector: {name: pg}\n", "", "connector: must be a string"},
		"no mapping":    {"controlPlane: [a]", "", "controlPlane: must be a mapping"},
		"not YAML":      {"a: [", "", "is not YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := connectorName([]byte(test.source))
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if (err != nil) != (test.refusal != "") || err != nil && (!strings.Contains(err.Error(), test.refusal) || !fault.Is(err, fault.Refused)) {
				t.Errorf("got error %v, want %q", err, test.refusal)
			}
		})
	}
}

// FuzzEditConfig: whatever is accepted differs from its source in the three fields and in nothing else, and is edited the
// same way again by every reader.
func FuzzEditConfig(f *testing.F) {
	f.Add("controlPlane: {backingStore: {database: {embedded: {enabled: true}}}}", testDSN)
	f.Add("controlPlane:\n  backingStore:\n    database:\n      external:\n        enabled: true\n        connector: pg\n# end", "mysql://u:p@tcp(h:1)/d?tls=x")
	f.Add("a: &a {enabled: true, connector: &c x}\ncontrolPlane: &cp\n  backingStore:\n    database:\n      external: *a\nb: [*cp, *c]", "x: 'y' # \"")
	f.Add("a: &a {backingStore: {database: {embedded: {enabled: true}}}}\ncontrolPlane: {<<: [*a, {x: 1}]}\n", "\t\u2028")
	f.Add("controlPlane: {backingStore: {database: {embedded: {? &k dataSource : &v x, enabled: true}}}}\n*k : *v", "z")
	f.Fuzz(func(t *testing.T, source, dsn string) {
		result, err := edit([]byte(source), dsn, testCA)
		if err != nil {
			if !fault.Is(err, fault.Refused) {
				t.Fatalf("class %v: %v", fault.Of(err), err)
			}
			return
		}
		var want, got any
		if err := yaml.Unmarshal([]byte(source), &want); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(result, &got); err != nil {
			t.Fatal(err)
		}
		name := "embedded"
		switch field(want, "external", "enabled") {
		case true, "yes", "Yes", "YES", "on", "On", "ON", "y", "Y":
			name = "external"
		}
		for key, value := range map[string]any{"dataSource": dsn, "caFile": testCA, "connector": nil} {
			if field(got, name, key) != value {
				t.Fatalf("%s: got %v, want %v", key, field(got, name, key), value)
			}
			drop(got, name, key)
			drop(want, name, key)
		}
		if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
			t.Fatalf("got  %#v\nwant %#v", got, want)
		}
	})
}

// store finds the store in a decoded config; a mapping with a key that is no string is a map[any]any.
func store(v any, name string) any {
	for _, key := range []string{"controlPlane", "backingStore", "database", name} {
		v = member(v, key)
	}
	return v
}

func member(v any, key string) any {
	switch m := v.(type) {
	case map[string]any:
		return m[key]
	case map[any]any:
		return m[key]
	}
	return nil
}

func field(v any, name, key string) any { return member(store(v, name), key) }

func drop(v any, name, key string) {
	switch m := store(v, name).(type) {
	case map[string]any:
		delete(m, key)
	case map[any]any:
		delete(m, key)
	}
}
