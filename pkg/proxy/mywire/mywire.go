// SPDX-License-Identifier: Apache-2.0

package mywire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"dbconnector/pkg/dbserver"
	"dbconnector/pkg/fault"
	"dbconnector/pkg/proxy"
)

// Errors of ours have a server's or a client's number.
const (
	badHandshake   = 1043
	tooMany        = 1040
	accessDenied   = 1045
	cannotConnect  = 2003 // of the clients' library: there is no number of a server's for it
	generalState   = "HY000"
	deniedState    = "28000"
	tooManyState   = "08004"
	handshakeState = "08S01"
)

// deniedCodes are what servers say to a login that cannot be used with its password, and perhaps another one can.
var deniedCodes = []uint16{
	accessDenied,
	1251, 1275, 1524, // the account's plugin is not known
	1698,       // it takes no password
	1862,       // expired
	3118, 4151, // locked
	3955, 4150, // blocked after failed logins
}

// denies says whether the server refuses the login, so that another one may be let in.
func (e *serverError) denies() bool { return slices.Contains(deniedCodes, e.code) }

func (e *serverError) openError() error {
	result := proxy.ServerError
	if e.denies() {
		result = proxy.Refused
	}
	return &proxy.OpenError{Result: result, Code: fmt.Sprint(e.code), Err: e}
}

// Wire serves the clients of one tenant on a MySQL or MariaDB server.
type Wire struct{}

var _ proxy.Wire = (*Wire)(nil)

// New makes one.
func New() *Wire { return &Wire{} }

// Open is described at proxy.Wire. The client gets the server's greeting, so that both agree on what the server can do, and the server
// gets the client's answer. Only what has to do with TLS and the login is replaced.
func (w *Wire) Open(ctx context.Context, client net.Conn, next proxy.Next) (*proxy.Session, error) {
	s, login, err := first(ctx, next)
	if err != nil {
		return nil, tell(client, 0, err)
	}
	defer func() { s.close() }()
	a, err := s.greet(client)
	if err != nil {
		if failure := (*proxy.OpenError)(nil); !errors.As(err, &failure) {
			err = tell(client, 2, err)
		}
		return nil, s.part(ctx, login, err)
	}
	ok, login, err := w.logIn(ctx, &s, a, login, next)
	if err != nil {
		return nil, tell(client, 2, err)
	}
	if err := say(client, 2, ok); err != nil {
		return nil, &proxy.OpenError{Result: proxy.ClientError, LetIn: login, Err: err}
	}
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		return nil, &proxy.OpenError{Result: proxy.Unreachable, Err: err}
	}
	state := newState(a, ok)
	server := s.conn
	s.conn, s.raw = nil, nil
	return &proxy.Session{
		Server: server, Login: login, FromClient: state.fromClient, FromServer: state.fromServer, Idle: state.idle,
		Goodbye: []byte{1, 0, 0, 0, comQuit},
		Close:   func() {},
	}, nil
}

// server is a connection to a server that has greeted.
type server struct {
	conn, raw net.Conn // secured, and as it was dialed; nil when it belongs to a session
	greeting  *greeting
	number    byte // of its last packet
}

func (s *server) close() {
	if s.raw != nil {
		_ = s.raw.Close()
	}
}

// first connects for the first login.
func first(ctx context.Context, next proxy.Next) (server, proxy.Login, error) {
	login, err := next(ctx, nil)
	if err != nil {
		return server{}, login, err
	}
	s, err := connect(ctx, login)
	return s, login, err
}

// connect dials and reads the greeting.
func connect(ctx context.Context, login proxy.Login) (server, error) {
	ctx, cancel := context.WithTimeout(ctx, proxy.AttemptTime)
	defer cancel()
	conn, err := proxy.Dial(ctx, "tcp", login.Server.Address())
	if err != nil {
		return server{}, err
	}
	s := server{conn: conn, raw: conn}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	number, payload, err := readPacket(conn)
	s.number = number
	switch {
	case err != nil:
	case len(payload) > 0 && payload[0] == errPacket:
		err = parseError(payload)
	default:
		s.greeting, err = parseGreeting(payload)
	}
	if err != nil {
		s.close()
		return server{}, err
	}
	return s, nil
}

// greet passes the greeting on, and reads the client's answer.
func (s *server) greet(client net.Conn) (*answer, error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	for i := range salt {
		salt[i] = salt[i]%126 + 1 // no zero, which ends it
	}
	if err := say(client, 0, s.greeting.forClient(salt)); err != nil {
		return nil, &proxy.OpenError{Result: proxy.ClientError, Err: err}
	}
	_ = client.SetReadDeadline(time.Now().Add(proxy.HelloTime))
	_, payload, err := readPacket(client)
	if err != nil {
		return nil, &proxy.OpenError{Result: proxy.ClientError, Err: fmt.Errorf("reading the client's answer: %w", err)}
	}
	return parseAnswer(payload, s.greeting.caps&^refused, s.greeting.extended())
}

// part ends a connection whose client has gone before it said anything of use. The server counts one that just breaks off, and blocks all
// connections from this address after some (max_connect_errors); on a node that may be those of other tenants, too. Its error is end, why the
// client has gone, or that the server has refused the login. What the server says to the login counts as for any session.
func (s *server) part(ctx context.Context, login proxy.Login, end error) error {
	const utf8mb4 = 45
	a := &answer{caps: longPassword | protocol41}
	a.fixed[8] = utf8mb4
	_, err := s.logIn(ctx, a, login)
	var said *serverError
	var failure *proxy.OpenError
	switch {
	case err == nil:
		s.number = 0xff // a command begins with 0
		_ = s.send([]byte{comQuit})
		if errors.As(end, &failure) {
			failure.LetIn = login
		}
	case errors.As(err, &said) && said.denies():
		return said.openError()
	}
	return end
}

// logIn tries one login after the other, and returns the server's OK packet. s is the connection for the first, and is replaced for each
// that follows.
func (w *Wire) logIn(ctx context.Context, s *server, a *answer, login proxy.Login, next proxy.Next) ([]byte, proxy.Login, error) {
	for {
		ok, err := s.logIn(ctx, a, login)
		var said *serverError
		if err == nil || !errors.As(err, &said) || !said.denies() {
			return ok, login, err
		}
		s.close()
		s.conn, s.raw = nil, nil
		if login, err = next(ctx, err); err != nil {
			return nil, login, err
		}
		again, err := connect(ctx, login)
		if err != nil {
			return nil, login, err
		}
		*s = again
		if missing := a.caps&^longPassword&^s.greeting.caps | a.extended&^s.greeting.extended(); missing != 0 {
			return nil, login, fault.New(fault.Unavailable, "another server answers, which lacks what was agreed with the client (capabilities %#x)", missing)
		}
	}
}

// logIn logs in once.
func (s *server) logIn(ctx context.Context, a *answer, login proxy.Login) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, proxy.AttemptTime)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = s.raw.SetDeadline(deadline)
	raw := s.raw
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	more := uint32(0)
	config, err := login.Server.TLSConfig()
	switch {
	case err != nil:
		return nil, fmt.Errorf("preparing TLS: %w", err)
	case config != nil && s.greeting.caps&useTLS == 0:
		return nil, fault.NoTLS()
	case config != nil:
		more = useTLS
		const fixed = 32
		if err := s.send(a.forServer("", nil, "", more)[:fixed]); err != nil {
			return nil, err
		}
		secured := tls.Client(s.raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		s.conn = secured
	}
	by := auth{password: login.Password.Reveal(), secret: config != nil, public: login.Server.SSLMode == dbserver.Disable}
	plugin := s.greeting.plugin
	reply, err := by.begin(plugin, s.greeting.salt)
	if err != nil { // the account's own may be known
		plugin = nativePassword
		reply, err = by.begin(plugin, s.greeting.salt)
	}
	if err == nil {
		err = s.send(a.forServer(login.User, reply, plugin, more))
	}
	if err != nil {
		return nil, err
	}
	return s.authenticate(&by)
}

// authenticate answers the server's questions until it lets the login in.
func (s *server) authenticate(by *auth) ([]byte, error) {
	switched := false
	for {
		number, payload, err := readPacket(s.conn)
		if err != nil {
			return nil, err
		}
		s.number = number
		if len(payload) == 0 {
			return nil, errGreeting
		}
		var reply []byte
		replies := true
		switch payload[0] {
		case okPacket:
			return payload, nil
		case errPacket:
			return nil, parseError(payload)
		case nextFactor:
			return nil, errors.New("the server wants another factor beside the password, which a login of a tenant does not have")
		case switchPacket:
			name, salt, found := cutZero(payload[1:])
			if switched || !found {
				return nil, errGreeting
			}
			switched = true
			if n := len(salt); n > 0 && salt[n-1] == 0 {
				salt = salt[:n-1]
			}
			reply, err = by.begin(string(name), salt)
		case moreData:
			reply, replies, err = by.more(payload[1:])
		default: // MariaDB's plugins send their questions as they are
			reply, replies, err = by.more(payload)
		}
		if err == nil && replies {
			err = s.send(reply)
		}
		if err != nil {
			return nil, err
		}
	}
}

// send answers the server's last packet.
func (s *server) send(payload []byte) error {
	s.number++
	return writePacket(s.conn, s.number, payload)
}

// say tells the client something. One that does not read in time has no claim to an answer.
func say(client net.Conn, number byte, payload []byte) error {
	err := client.SetWriteDeadline(time.Now().Add(proxy.AnswerTime))
	if err == nil {
		err = writePacket(client, number, payload)
	}
	if err != nil {
		return fmt.Errorf("answering the client: %w", err)
	}
	return nil
}

// tell passes on why a session could not be opened: the server's own words and number, where there are any. number is the packet's: 0
// in place of a greeting.
func tell(client net.Conn, number byte, err error) error {
	var said *serverError
	if errors.As(err, &said) {
		_ = say(client, number, said.payload)
		return said.openError()
	}
	result, code, state := proxy.Unreachable, uint16(cannotConnect), generalState
	switch {
	case errors.Is(err, proxy.ErrNoLogin):
		result, code, state = proxy.Refused, accessDenied, deniedState
	case errors.Is(err, errTLS), errors.Is(err, errProtocol), errors.Is(err, errAnswer):
		result, code, state = proxy.ClientError, badHandshake, handshakeState
	default:
		if network := fault.Network(err); network != nil {
			err = network
		}
	}
	_ = say(client, number, newError(code, state, "dbconnector: "+fault.Words(err.Error()), number == 0))
	return &proxy.OpenError{Result: result, Code: fmt.Sprint(code), Err: err}
}

// Refuse is described at proxy.Wire. In this protocol the server speaks first.
func (w *Wire) Refuse(_ context.Context, client net.Conn) {
	_ = say(client, 0, newError(tooMany, tooManyState, "dbconnector: there is no room for another session of this tenant", true))
}
