// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	minPeriod = 2 * time.Second      // for tests; nothing else gains by it
	maxPeriod = 366 * 24 * time.Hour // less than one rotation a year is none
)

// Rotate is what dbconnector-rotate is told. Of Common it has no use for the connector and the connection limit: it
// takes them so that both containers of a pod may have the same environment.
type Rotate struct {
	Common
	// Period is the age at which the active password is rotated. Default 720h, thirty days: what most password policies ask
	// for, and rare enough for a rollout.
	Period time.Duration `ignored:"true"`
	// Grace is how long the old password stays valid after a rotation, at least. Default 10m: a rollout of three replicas
	// takes less, and a client that read the old DSN from a file a moment ago has had its time. It is a tenth of the period where
	// that is less.
	Grace time.Duration `ignored:"true"`
	// HTTPAddress is where /healthz, /readyz and /metrics are served. Default: every address of the pod, since the kubelet
	// and Prometheus come from outside of it, and a port that no other program of a vCluster's pod has.
	HTTPAddress string `envconfig:"DBCONNECTOR_HTTP_ADDRESS" default:":8085"`
}

type rotateTexts struct {
	texts
	Period string `envconfig:"DBCONNECTOR_ROTATION_PERIOD" default:"720h"`
	Grace  string `envconfig:"DBCONNECTOR_GRACE" default:"10m"`
}

// LoadRotate is Load for dbconnector-rotate.
func LoadRotate() (c Rotate, warnings []string, err error) { return loadRotate(namespaceFile) }

func loadRotate(namespaceFile string) (Rotate, []string, error) {
	var c Rotate
	var t rotateTexts
	v := validator{}
	if err := v.read(&c, &t.texts, &t); err != nil {
		return Rotate{}, nil, err
	}
	v.common(&c.Common, t.texts, namespaceFile, c.UsesKubernetes())
	v.rotate(&c, t)
	if err := v.verdict(); err != nil {
		return Rotate{Common: c.logging()}, nil, err
	}
	return c, v.warnings, nil
}

// rotate checks and completes what only dbconnector-rotate is told.
func (v *validator) rotate(c *Rotate, t rotateTexts) {
	c.Period = v.duration("DBCONNECTOR_ROTATION_PERIOD", t.Period, minPeriod, maxPeriod, "from 2s to 8784h, such as 168h")
	c.Grace = v.duration("DBCONNECTOR_GRACE", t.Grace, 0, maxPeriod, "from 0s to 8784h, such as 10m")
	switch {
	case os.Getenv("DBCONNECTOR_GRACE") == "":
		// An operator who rotates more often than in two hours has not asked for ten minutes.
		c.Grace = min(c.Grace, c.Period/10)
	case c.Period > 0 && c.Grace >= c.Period:
		v.refuse("DBCONNECTOR_GRACE", t.Grace, "must be shorter than DBCONNECTOR_ROTATION_PERIOD="+t.Period)
	}
	host, port, err := net.SplitHostPort(c.HTTPAddress)
	_, tooLarge := strconv.ParseUint(port, 10, 16)
	if err != nil || tooLarge != nil || strings.ContainsAny(host, " /") {
		v.refuse("DBCONNECTOR_HTTP_ADDRESS", c.HTTPAddress, "must be an address to listen on, host:port or :port")
	}
}

// UsesKubernetes tells whether anything has to be asked of the API server.
func (c Rotate) UsesKubernetes() bool { return c.StateDir == "" }

// Effective is Init.Effective for dbconnector-rotate.
func (c Rotate) Effective() map[string]string {
	m := c.effective()
	m["DBCONNECTOR_ROTATION_PERIOD"], m["DBCONNECTOR_GRACE"] = c.Period.String(), c.Grace.String()
	m["DBCONNECTOR_HTTP_ADDRESS"] = c.HTTPAddress
	return m
}
