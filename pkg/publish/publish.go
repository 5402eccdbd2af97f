// SPDX-License-Identifier: Apache-2.0

// Package publish projects a tenant's record into the hand-over. Both programs do it: init before the control plane starts,
// rotate whenever the record has moved on. The record is the truth, and what is published can be made from it at any time.
package publish

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"dbconnector/pkg/atomicfile"
	"dbconnector/pkg/config"
	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
)

// Publisher writes the hand-over of one control plane. It is for one goroutine.
type Publisher struct {
	dir      string
	mode     fs.FileMode
	vcluster *handover.Config // nil for none
}

// New reads the vCluster's config, once: the control plane does not read it a second time either. It refuses, before anything
// is done, what could not be written at the end. Its errors are of class fault.Refused.
func New(cfg config.Common) (*Publisher, error) {
	vcluster, err := readConfig(cfg)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(cfg.OutputDir); err != nil || !info.IsDir() {
		return nil, fault.New(fault.Refused, "DBCONNECTOR_OUTPUT_DIR=%s: must be a directory that exists: a volume which the control plane mounts, too", fault.Show(cfg.OutputDir))
	}
	if err := handover.Check(cfg.OutputDir); err != nil {
		return nil, err
	}
	if vcluster != nil {
		if _, err := vcluster.Edit("postgres://", ""); err != nil {
			return nil, err
		}
	}
	return &Publisher{dir: cfg.OutputDir, mode: cfg.FileMode, vcluster: vcluster}, nil
}

// readConfig reads the vCluster's config; nil where there is none and the operator did not name one.
func readConfig(cfg config.Common) (*handover.Config, error) {
	source, err := atomicfile.Read(cfg.VClusterConfig, handover.MaxConfig+1)
	if err == nil {
		return handover.ParseConfig(source)
	}
	if errors.Is(err, fs.ErrNotExist) && !cfg.VClusterConfigSet {
		return nil, nil
	}
	return nil, fault.New(fault.Refused, "reading the vCluster's config (DBCONNECTOR_VCLUSTER_CONFIG): %w", err)
}

// Connector is the name of the connector that the vCluster's config asks for; empty where it asks for none.
func (p *Publisher) Connector() (string, error) {
	if p.vcluster == nil {
		return "", nil
	}
	return p.vcluster.Connector()
}

// Warnings are what an operator should know of the vCluster's config.
func (p *Publisher) Warnings() []string {
	if p.vcluster == nil {
		return nil
	}
	return p.vcluster.Warnings()
}

// Published says whether a hand-over is there: written by this program or by one before it in the same pod.
func (p *Publisher) Published() bool {
	info, err := os.Lstat(filepath.Join(p.dir, handover.DSNFile))
	return err == nil && info.Mode().IsRegular()
}

// Replaces says whether Publish would replace a DSN by another one. Where it cannot tell, it says yes.
func (p *Publisher) Replaces(r *tenant.Record) bool {
	dsn, failed := open.DSN(r)
	old, err := atomicfile.Read(filepath.Join(p.dir, handover.DSNFile), len(dsn)+1)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return err != nil || failed != nil || string(old) != dsn
}

// Publish brings the hand-over to the record's state. What is right already is not touched.
func (p *Publisher) Publish(r *tenant.Record) error {
	dsn, err := open.DSN(r)
	if err != nil {
		return err
	}
	files := handover.Files{DSN: dsn, CA: r.Server.CA}
	if p.vcluster != nil {
		ca := ""
		if r.Server.CA != "" {
			ca = filepath.Join(p.dir, handover.CAFile)
		}
		if files.Config, err = p.vcluster.Edit(dsn, ca); err != nil {
			return err
		}
	}
	_, err = handover.Write(p.dir, p.mode, files)
	return err
}
