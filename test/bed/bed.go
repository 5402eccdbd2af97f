// SPDX-License-Identifier: Apache-2.0

// Package bed gives tests, the demo and the benchmarks real servers: every
// supported version of PostgreSQL, MySQL and MariaDB, kine, and Kubernetes, as an
// API server without nodes or as a node with real pods.
//
// # How it works
//
// No container runtime is needed, and nothing is installed on the machine but a few
// tools of Debian where they are missing (npm, buildah). Each thing that is
// downloaded or built is an item of a cache outside the checkout
// ($DBCONNECTOR_TEST_CACHE, see [CacheDir]); an item appears there by one rename, under a
// lock, so processes that want it at the same time fetch it once and an
// interrupted fetch leaves nothing. The sources are
//
//   - PostgreSQL: the npm packages that carry its binaries, pinned;
//   - MySQL and MariaDB: packages of the Debian release that has the version,
//     from the mirror which the machine's own apt sources name, resolved and
//     verified by apt with a state directory of our own, then unpacked. The
//     server is run by the dynamic loader of its own release, which makes a
//     chroot, mounts and root unnecessary;
//   - kine and Kubernetes: the Go module proxy;
//   - what a [Node] runs pods with: packages of one Debian release, unpacked into a
//     root file system that is the node's alone. A node needs root;
//   - our own image: built from the Dockerfile by buildah, without a network
//     ([BuildDockerfile]).
//
// A database item also holds an initialised data directory with an admin that may
// log in over TCP; [Start] copies it, which is why a start takes a second.
// Servers listen on a free loopback port, keep their data in a temporary
// directory, and die with the process that started them, even by SIGKILL.
//
// # Your own servers
//
// A server can be named instead of started:
//
//	DBCONNECTOR_TEST_POSTGRES_17_URL=postgres://admin:secret@db.example:5432/?sslmode=verify-full
//	DBCONNECTOR_TEST_POSTGRES_17_CA=/path/to/ca.pem
//	DBCONNECTOR_TEST_MARIADB_10_11_URL=mysql://admin:secret@db.example:3306/
//
// The variables are DBCONNECTOR_TEST_<ENGINE>_<VERSION>_URL and …_CA with dots as
// underscores. sslmode=disable means no TLS. Such a server is used when [Options]
// ask for nothing special; a test that needs a certificate, a setting, a log or
// a crash still starts its own.
//
// # Conventions
//
// Functions take a context and return errors, so that a plain main can use them;
// NewServer, NewAPIServer and the like are for tests, fail them, and clean up.
// There is no skip: a server that cannot be had is a failure.
package bed

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// Progress receives a line whenever something slow begins. Set it before the
// first call; nil, the default, keeps quiet.
var Progress io.Writer

var progressMu sync.Mutex

func progress(format string, args ...any) {
	if Progress == nil {
		return
	}
	progressMu.Lock()
	defer progressMu.Unlock()
	_, _ = fmt.Fprintf(Progress, "bed: "+format+"\n", args...)
}

// Engine is a kind of database server.
type Engine string

// The engines. MariaDB is its own engine here, because tests are about the
// differences between it and MySQL.
const (
	Postgres Engine = "postgres"
	MySQL    Engine = "mysql"
	MariaDB  Engine = "mariadb"
)

// Version is one server that the bed can start.
type Version struct {
	Engine  Engine
	Version string // what a test asks for and reports: "17", "10.11"

	npm   string   // version of the npm package (PostgreSQL)
	suite string   // Debian release (MySQL, MariaDB)
	debs  []string // its packages
}

// String is the name of the version's cache item, such as "mariadb-10.11".
func (v Version) String() string { return string(v.Engine) + "-" + v.Version }

// Versions lists every server the bed can start. This table is the one place
// that pins them.
//
// sid moves on: should it come to hold a newer MySQL than the one named here, that
// one is started and [Server.FullVersion] tells.
var Versions = []Version{
	{Engine: Postgres, Version: "13", npm: "13.23.0-beta.16"},
	{Engine: Postgres, Version: "14", npm: "14.23.0-beta.17"},
	{Engine: Postgres, Version: "15", npm: "15.18.0-beta.17"},
	{Engine: Postgres, Version: "16", npm: "16.14.0-beta.17"},
	{Engine: Postgres, Version: "17", npm: "17.10.0-beta.17"},
	{Engine: Postgres, Version: "18", npm: "18.4.0-beta.17"},
	{Engine: MariaDB, Version: "10.5", suite: "bullseye", debs: []string{"mariadb-server-core-10.5"}},
	{Engine: MariaDB, Version: "10.11", suite: "bookworm", debs: []string{"mariadb-server-core"}},
	{Engine: MariaDB, Version: "11.8", suite: "trixie", debs: []string{"mariadb-server-core"}},
	{Engine: MySQL, Version: "9.7", suite: "sid", debs: []string{"mysql-server-core"}},
}

// Usual are the servers on which a test runs that does not depend on the version: one of PostgreSQL, MySQL and MariaDB, in this order.
func Usual() (list []Version) {
	for _, engine := range []Engine{Postgres, MySQL, MariaDB} {
		v, err := lookup(engine, map[Engine]string{Postgres: "17", MySQL: "9.7", MariaDB: "11.8"}[engine])
		if err != nil {
			panic(err)
		}
		list = append(list, v)
	}
	return list
}

func lookup(engine Engine, version string) (Version, error) {
	for _, v := range Versions {
		if v.Engine == engine && v.Version == version {
			return v, nil
		}
	}
	return Version{}, fmt.Errorf("no server %s-%s among the bed's versions", engine, version)
}

// tempDir makes a directory for one server's data that the servers' account can
// use. It is removed by its owner, or by the next bed to come along if the owner
// was killed.
func tempDir(kind string) (string, *os.File, error) {
	sweepOnce()
	dir, err := os.MkdirTemp("", tempPrefix+kind+"-")
	if err != nil {
		return "", nil, fmt.Errorf("making temporary directory: %w", err)
	}
	owner, err := holdDir(dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, owner, nil
}

// TempDir makes a directory that remove removes, or the next bed to come along if this process was killed before.
func TempDir(kind string) (dir string, remove func(), err error) {
	dir, owner, err := tempDir(kind)
	if err != nil {
		return "", nil, err
	}
	return dir, func() {
		_ = os.RemoveAll(dir)
		_ = owner.Close()
	}, nil
}
