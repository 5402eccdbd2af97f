// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/tenant"
	"dbconnector/test/rig"
)

// socketFire is for how long passwords are rotated; longer where the variable says so.
func socketFire(t *testing.T) time.Duration {
	t.Helper()
	const variable, usual = "DBCONNECTOR_TEST_SOCKET_FIRE", 20 * time.Second
	if text := os.Getenv(variable); text != "" {
		d, err := time.ParseDuration(text)
		require.NoError(t, err, variable)
		return d
	}
	return usual
}

// TestRotationBySocket: a control plane of three replicas holds no password. Its sidecars rotate every five seconds under load, and no
// request fails, no watch is interrupted, no process of it is started again; retired passwords are dead. (26, 28, 41, 43)
func TestRotationBySocket(t *testing.T) {
	t.Parallel()
	for _, s := range settings[:3] {
		t.Run(string(s.engine)+"-"+s.version, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, s, "ADOPT=socket", "ROTATION_PERIOD=5s", "GRACE=500ms")
			load := startTraffic(t, p.api)
			load.progress(t, 20)
			passwords := map[dbserver.Password]tenant.Login{}
			began := p.record(t)
			const least = 3 // rotations
			for until, now := time.Now().Add(socketFire(t)), began; time.Now().Before(until) || now.Generation < began.Generation+least; {
				now = p.record(t)
				for slot := range now.Slots {
					login := now.Login(slot)
					passwords[login.Password] = login
				}
				load.progress(t, 5)
			}
			last := p.record(t)
			rotations := last.Generation - began.Generation

			p.until(t, nil, "the old login is retired", func(r *tenant.Record) bool { return r.OtherRetired && r.Pending == nil })
			last = p.record(t)
			dead := 0
			for password, login := range passwords {
				if password == last.Slots[tenant.A].Password || password == last.Slots[tenant.B].Password {
					continue
				}
				dead++
				assert.NoError(t, rig.CheckRefused(t.Context(), last, login), "a password of before")
			}
			load.check(t)
			t.Logf("%d rotations, %d passwords refused", rotations, dead)
			assert.Zero(t, load.failed(), "requests failed")
			for i := range load.watchers {
				assert.Zero(t, load.watchers[i].resumed, "a watch was interrupted")
			}
			for i, r := range p.pods {
				assert.Len(t, r.dsns, 1, "data sources of replica %d", i)
				r.checkSecrets(t, passwords)
			}
			p.pods[replicas-1].checkEnd(t)
		})
	}
}

// checkEnd: a sidecar that is asked to end serves as long as its control plane lives. (34)
func (r *pod) checkEnd(t *testing.T) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		exit, err := r.sidecar.Stop(context.WithoutCancel(t.Context()))
		if err == nil && exit != 0 {
			err = fmt.Errorf("exit code %d", exit)
		}
		ended <- err
	}()
	client := dial(t, r.kine.Endpoint)
	_, err := Put(t.Context(), client, "/last/write", "x", 0)
	require.NoError(t, err, "a write beside a sidecar that is asked to end")
	require.NoError(t, r.kine.Halt(t.Context()))
	require.NoError(t, <-ended, "%s", r.sidecar.Log())
}

// checkSecrets: none of the passwords is in what the control plane can see, or wrote, nor in the sidecar's log.
func (r *pod) checkSecrets(t *testing.T, passwords map[dbserver.Password]tenant.Login) {
	t.Helper()
	seen, err := r.Visible(r.kine)
	require.NoError(t, err)
	require.Contains(t, seen, r.dsns[0])
	for _, s := range r.sidecars {
		seen += s.Log()
	}
	for password := range passwords {
		if strings.Contains(seen, password.Reveal()) {
			t.Errorf("a password is in the control plane's arguments, environment, files or log, or in the sidecar's log")
		}
	}
}
