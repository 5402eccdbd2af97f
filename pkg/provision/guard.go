// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/tenant"
)

// uid is the tenant's, and never what the record alone says: who may write Secrets in one namespace could write another
// tenant's UID into the record there, and have the admin open that tenant's database (S2).
func (r *run) uid(ctx context.Context, record *tenant.Record) (string, error) {
	uid := r.TenantUID
	if uid == "" {
		var err error
		if uid, err = r.UID(ctx); err != nil {
			return "", err
		}
	}
	if record != nil && record.UID != uid {
		return "", fault.New(fault.Refused, "%s names another tenant than this namespace and vCluster are, and with the admin's credential only the own one may "+
			"be touched: if its database was moved here for good, set DBCONNECTOR_TENANT_UID=%s; if not, it was edited by hand: restore it from a backup, or delete "+
			"it: %s",
			r.RecordName, fault.Show(record.UID), r.ForgetCommand)
	}
	return uid, nil
}

// same refuses a record that is gone, or is another tenant's than that of this attempt.
func (r *run) same(record *tenant.Record) error {
	switch {
	case record == nil:
		return fault.New(fault.Unavailable, "%s was deleted while it was in use", r.RecordName)
	case record.UID != r.tenant: // and so it is not this tenant's lock that is held
		return fault.New(fault.Unavailable, "%s was replaced while it was in use", r.RecordName)
	}
	return nil
}

// belongs refuses the record of another control plane: restored under another name, or copied.
func (r *run) belongs(record *tenant.Record) error {
	switch {
	case record == nil || record.Of(r.Namespace, r.VCluster, r.TenantUID):
	case r.TenantUID != "":
		return fault.New(fault.Refused, "%s belongs to tenant UID %s, and DBCONNECTOR_TENANT_UID=%s: set the variable to the former to keep its data, or move the "+
			"record out of the way: %s",
			r.RecordName, fault.Show(record.UID), fault.Show(r.TenantUID), r.ForgetCommand)
	default:
		return fault.New(fault.Refused, "%s was made for vCluster %q in namespace %q: if it was moved here and the old one is gone, set DBCONNECTOR_TENANT_UID=%s "+
			"to go on with its data; if it was copied, delete it: %s",
			r.RecordName, record.VCluster, record.Namespace, record.UID, r.ForgetCommand)
	}
	return nil
}

// guard turns "the database is not there" into the refusal that promise 2 asks for. Every other error passes. A database that
// was never complete, and is dropped while it is set up, is made again.
func (r *run) guard(record *tenant.Record, at dbserver.Server, err error) error {
	switch {
	case !fault.Is(err, fault.NoDatabase):
		return err
	case !record.Provisioned() && r.ranBefore != "" && !r.createdDatabase:
		return fault.New(fault.Refused, "this control plane has run before (%s), and neither is there a record of its database nor is database %q on %s: refusing "+
			"to start on an empty one; "+
			"if its data is in another store (SQLite, etcd, another database), it has to stay there; if the data is to be given up, set DBCONNECTOR_ALLOW_NEW=true "+
			"for one start",
			r.ranBefore, record.Database, at.Address())
	case !record.Provisioned():
		return fault.New(fault.Unavailable, "database %q vanished while it was set up: %w", record.Database, err)
	}
	return fault.New(fault.Refused, "%s says that database %q was provisioned on %s, and it is not on %s: refusing to start on an empty one; "+
		"bring the database back (restore it, or let the connector point at the server that has it); to give its data up and begin again, set "+
		"DBCONNECTOR_ALLOW_NEW=true for one start, and: %s",
		r.RecordName, record.Database, record.Server.Address(), at.Address(), r.ForgetCommand)
}

// empty is the same refusal for a database that is there and has lost its content: a restore that ended after its first
// statement looks like that.
func (r *run) empty(record *tenant.Record, at dbserver.Server) error {
	return fault.New(fault.Refused, "%s says that database %q held this control plane's data, and on %s it holds none: refusing to start on an empty one; "+
		"bring the data back (restore it, or let the connector point at the server that has it); to give it up and begin again: %s",
		r.RecordName, record.Database, at.Address(), r.ForgetCommand)
}
