// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/base64"
	"strings"
	"testing"
)

func token(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ token, namespace, account string }{
		"a pod's":                {token(`{"sub":"system:serviceaccount:ns:vc-my"}`), "ns", "vc-my"},
		"with a line's end":      {token(`{"sub":"system:serviceaccount:ns:vc-my"}`) + "\n", "ns", "vc-my"},
		"a user's":               {token(`{"sub":"jane"}`), "", ""},
		"no claims":              {token(`[]`), "", ""},
		"no token":               {"secret", "", ""},
		"nothing":                {"", "", ""},
		"longer than any token":  {token(`{"sub":"system:serviceaccount:ns:a","x":"` + strings.Repeat("x", maxToken) + `"}`), "", ""},
		"a token that is padded": {"e30.e30=.sig", "", ""},
	} {
		if namespace, account := serviceAccount(test.token); namespace != test.namespace || account != test.account {
			t.Errorf("%s: %q, %q", name, namespace, account)
		}
	}
}

// FuzzServiceAccount: a file that is no token says nothing, and what a token says has no more parts than it had.
func FuzzServiceAccount(f *testing.F) {
	for _, seed := range []string{
		"", "a.b.c", token(`{"sub":"system:serviceaccount:ns:vc-my"}`), token(`{"sub":"system:serviceaccount::"}`),
		token(`{"sub":1}`), token(`null`),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		namespace, account := serviceAccount(s)
		if (namespace != "" || account != "") && strings.Count(s, ".") != 2 {
			t.Errorf("%q is %q, %q", s, namespace, account)
		}
		if strings.Contains(namespace, ":") {
			t.Errorf("namespace %q", namespace)
		}
	})
}
