package mywire

import (
	"context"
	"net"

	"dbconnector/pkg/proxy"
)

type W struct{}

func New() *W { return &W{} }
func (W) Open(ctx context.Context, client net.Conn, next proxy.Next) (*proxy.Session, error) {
	return nil, nil
}
func (W) Refuse(ctx context.Context, client net.Conn) {}
