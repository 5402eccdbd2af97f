// SPDX-License-Identifier: Apache-2.0

package pgwire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dbconnector/pkg/fault"
	"dbconnector/pkg/proxy"
)

// SQLSTATEs of what the proxy refuses itself.
const (
	cannotConnect       = "08001"
	notSupported        = "0A000"
	invalidPassword     = "28P01"
	invalidLogin        = "28000"
	noDatabase          = "3D000"
	tooManyConnections  = "53300"
	maintenanceDatabase = "postgres"
	template            = "template1"
)

// Wire serves the clients of one tenant on a PostgreSQL server.
type Wire struct {
	dial pgconn.DialFunc

	mu      sync.Mutex
	cancels map[string]*pgconn.PgConn // by process and secret key
}

var _ proxy.Wire = (*Wire)(nil)

// New makes one.
func New() *Wire { return &Wire{dial: proxy.Dial, cancels: map[string]*pgconn.PgConn{}} }

// Open is described at proxy.Wire. Of what the client says, the user and the database are replaced: the client has no login, and every
// name but those of the maintenance databases stands for the tenant's.
func (w *Wire) Open(ctx context.Context, client net.Conn, next proxy.Next) (*proxy.Session, error) {
	h, err := readHello(client)
	switch {
	case errors.Is(err, errProtocol):
		return nil, refuse(client, proxy.ClientError, notSupported, err)
	case err != nil:
		return nil, &proxy.OpenError{Result: proxy.ClientError, Err: err}
	case h.cancel != nil:
		if err := w.cancel(ctx, h.cancel); err != nil {
			return nil, &proxy.OpenError{Result: proxy.Unreachable, Err: err}
		}
		return nil, nil
	case h.params["replication"] != "":
		return nil, refuse(client, proxy.ClientError, notSupported, errors.New("replication is not passed on"))
	case h.database == maintenanceDatabase || h.database == template:
		return nil, refuse(client, proxy.ClientError, noDatabase, fmt.Errorf("database %q is not the tenant's", h.database))
	}
	server, login, err := w.logIn(ctx, h, next)
	if err != nil {
		return nil, tell(client, err)
	}
	// The counterpart of Hijack, only to cancel by it: it knows the server's address and how to secure the connection there.
	shadow, err := pgconn.Construct(server.HijackedConn)
	if err != nil {
		_ = server.Conn.Close()
		return nil, refuse(client, proxy.Unreachable, cannotConnect, err)
	}
	key := ""
	if len(server.SecretKey) > 0 {
		key = cancelKey(server.PID, server.SecretKey)
		w.mu.Lock()
		w.cancels[key] = shadow
		w.mu.Unlock()
	}
	state := &state{status: server.TxStatus}
	session := &proxy.Session{
		Server: server.Conn, Login: login, FromClient: state.fromClient, FromServer: state.fromServer, Idle: state.idle,
		Goodbye: []byte{'X', 0, 0, 0, 4}, // Terminate
		Close: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.cancels, key)
		},
	}
	if err := welcome(client, h, server); err != nil {
		session.Close()
		_ = server.Conn.Close()
		return nil, &proxy.OpenError{Result: proxy.ClientError, LetIn: login, Err: err}
	}
	return session, nil
}

// logIn tries one login after the other.
func (w *Wire) logIn(ctx context.Context, h *hello, next proxy.Next) (*server, proxy.Login, error) {
	var refused error
	for {
		login, err := next(ctx, refused)
		if err != nil {
			return nil, login, err
		}
		server, err := w.attempt(ctx, h, login)
		var said *pgconn.PgError
		if errors.As(err, &said) && refusesLogin(said) {
			refused = err
			continue
		}
		return server, login, err
	}
}

// server is the server's side of a session.
type server struct {
	*pgconn.HijackedConn
	// notices are what it said on its own before: a warning that the collation has changed, say.
	notices []pgproto3.BackendMessage
}

// errNoTLS is the server's answer N to the question whether it offers TLS. pgconn has words for it, and no error value.
var errNoTLS = fault.NoTLS()

// asked is a connection on which TLS is asked for.
type asked struct {
	net.Conn
	answered bool
}

func (c *asked) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.answered {
		if c.answered = true; p[0] == 'N' {
			return 0, errNoTLS
		}
	}
	return n, err
}

// mostNotices is how many notices of a login are kept for the client.
const mostNotices = 16

// attempt logs in once.
func (w *Wire) attempt(ctx context.Context, h *hello, login proxy.Login) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, proxy.AttemptTime)
	defer cancel()
	// Only ParseConfig makes a usable config. It also reads the PG… variables of the environment, so everything is overwritten.
	config, err := pgconn.ParseConfig("sslmode=disable host=localhost")
	if err != nil {
		return nil, errors.New("reading the environment's PG variables failed: remove them")
	}
	config.Host, config.Port = login.Server.Host, login.Server.Port
	config.User, config.Password, config.Database = login.User, login.Password.Reveal(), login.Database
	config.Fallbacks, config.ValidateConnect, config.ConnectTimeout = nil, nil, 0
	config.KerberosSrvName, config.KerberosSpn = "", ""
	config.RuntimeParams = h.params
	// pgconn would give the first address of a name all the time that there is. Dial divides it among all of them.
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	s := &server{}
	config.OnNotice = func(_ *pgconn.PgConn, said *pgconn.Notice) {
		if notice := pgproto3.NoticeResponse(words((*pgconn.PgError)(said))); len(s.notices) < mostNotices {
			s.notices = append(s.notices, &notice)
		}
	}
	if config.TLSConfig, err = login.Server.TLSConfig(); err != nil {
		return nil, fmt.Errorf("preparing TLS: %w", err)
	}
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := w.dial(ctx, network, address)
		if err != nil || config.TLSConfig == nil {
			return conn, err
		}
		return &asked{Conn: conn}, nil
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	// pgconn may be reading already: a slow write makes it read in the background (proxy.md, P1).
	if err := conn.SyncConn(ctx); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	if s.HijackedConn, err = conn.Hijack(); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return s, s.Conn.SetDeadline(time.Time{})
}

// welcome tells the client that it is in, as the server told the proxy.
func welcome(client net.Conn, h *hello, s *server) error {
	var messages []pgproto3.BackendMessage
	if h.newer || len(h.unknown) > 0 {
		messages = append(messages, &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 0, UnrecognizedOptions: h.unknown})
	}
	messages = append(messages, &pgproto3.AuthenticationOk{})
	for name, value := range s.ParameterStatuses {
		messages = append(messages, &pgproto3.ParameterStatus{Name: name, Value: value})
	}
	if len(s.SecretKey) > 0 { // some servers behind a proxy give none
		messages = append(messages, &pgproto3.BackendKeyData{ProcessID: s.PID, SecretKey: s.SecretKey})
	}
	messages = append(messages, s.notices...)
	messages = append(messages, &pgproto3.ReadyForQuery{TxStatus: s.TxStatus})
	return send(client, messages...)
}

// send answers the client. One that does not read in time has no claim to an answer.
func send(client net.Conn, messages ...pgproto3.BackendMessage) error {
	var out []byte
	var err error
	for _, m := range messages {
		if out, err = m.Encode(out); err != nil {
			return fmt.Errorf("answering the client: %w", err)
		}
	}
	err = client.SetWriteDeadline(time.Now().Add(proxy.AnswerTime))
	if err == nil {
		_, err = client.Write(out)
	}
	if err != nil {
		return fmt.Errorf("answering the client: %w", err)
	}
	return nil
}

// tell passes on why a login failed: the server's own words and code, where there are any.
func tell(client net.Conn, err error) error {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		response := words(said)
		response.Severity, response.SeverityUnlocalized = "FATAL", "FATAL"
		_ = send(client, &response)
		result := proxy.ServerError
		if refusesLogin(said) {
			result = proxy.Refused
		}
		return &proxy.OpenError{Result: result, Code: said.Code, Err: fmt.Errorf("the server says: %s (SQLSTATE %s)", fault.Words(said.Message), said.Code)}
	}
	if errors.Is(err, proxy.ErrNoLogin) {
		return refuse(client, proxy.Refused, invalidLogin, err)
	}
	if errors.Is(err, errNoTLS) {
		err = errNoTLS
	} else if network := fault.Network(err); network != nil {
		err = network
	}
	return refuse(client, proxy.Unreachable, cannotConnect, err)
}

// words are what the server said, without where in its source it did.
func words(said *pgconn.PgError) pgproto3.ErrorResponse {
	return pgproto3.ErrorResponse{
		Severity: said.Severity, SeverityUnlocalized: said.SeverityUnlocalized,
		Code: said.Code, Message: said.Message, Detail: said.Detail, Hint: said.Hint,
	}
}

func refusesLogin(said *pgconn.PgError) bool {
	return said.Code == invalidPassword || said.Code == invalidLogin
}

// refuse tells the client what the proxy itself refuses, and returns it.
func refuse(client net.Conn, result proxy.Result, code string, err error) error {
	_ = send(client, &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: "dbconnector: " + fault.Words(err.Error())})
	return &proxy.OpenError{Result: result, Code: code, Err: err}
}

// Refuse is described at proxy.Wire.
func (w *Wire) Refuse(ctx context.Context, client net.Conn) {
	h, err := readHello(client)
	switch {
	case err != nil:
	case h.cancel != nil: // it costs no session
		_ = w.cancel(ctx, h.cancel)
	default:
		_ = refuse(client, proxy.NoRoom, tooManyConnections, errors.New("there is no room for another session of this tenant"))
	}
}

// cancel passes on a request to cancel the statement of a session. As on a server, a wrong key says nothing.
func (w *Wire) cancel(ctx context.Context, request *pgproto3.CancelRequest) error {
	w.mu.Lock()
	shadow := w.cancels[cancelKey(request.ProcessID, request.SecretKey)]
	w.mu.Unlock()
	if shadow == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proxy.AttemptTime)
	defer cancel()
	if err := shadow.CancelRequest(ctx); err != nil {
		return fmt.Errorf("cancelling a statement: %w", err)
	}
	return nil
}

func cancelKey(process uint32, secret []byte) string { return fmt.Sprint(process, " ", string(secret)) }
