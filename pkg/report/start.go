// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"time"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/kube"
	"dbconnector/pkg/provision"
)

// Start records the outcome of a run of init. A restart that found everything in place is not news.
func Start(ctx context.Context, events *Events, result provision.Result, failure error) {
	switch {
	case failure == nil && result.NotApplied != nil:
		events.Record(ctx, kube.Warning, "NotApplied", "the connector was not applied, and the control plane starts with the settings that it had: "+result.NotApplied.Error())
	case failure == nil && result.Restarted:
	case failure == nil:
		events.Record(ctx, kube.Normal, "Provisioned", result.String())
	case fault.Is(failure, fault.Refused):
		events.Record(ctx, kube.Warning, "Refused", failure.Error())
	default:
		events.Record(ctx, kube.Warning, "Failed", failure.Error())
	}
}

// Waiting records that init waits, once: a moment is not news.
func Waiting(ctx context.Context, events *Events, err error, attempt int, until time.Time) {
	if attempt == 2 {
		events.Record(ctx, kube.Warning, "Waiting", err.Error()+"; tried again until "+until.UTC().Format(time.RFC3339))
	}
}
