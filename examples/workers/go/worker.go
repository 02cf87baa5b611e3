// A worker in Go: takes events from JetStream and calls their webhooks. What it promises: ../README.md.
package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	_ "github.com/lib/pq"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	url         = setting("NATS_URL", "nats://localhost:4222")
	stream      = setting("STREAM", "WEBHOOKS")
	durable     = setting("CONSUMER", "worker-go")
	inFlight    = number("CALLS", "16")
	maxAttempts = number("MAX_ATTEMPTS", "5")
	retryMs     = number("RETRY_MS", "1000")
	statsMs     = number("STATS_MS", "10000")

	calls, nanoseconds atomic.Int64
	client             = &http.Client{
		Timeout: 10 * time.Second,
		// A redirect is a failure.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
)

type event struct {
	ID      string            `json:"id"`
	URL     string            `json:"webhook_url"`
	Headers map[string]string `json:"headers"`
	Data    json.RawMessage   `json:"data"`
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func number(name, otherwise string) int {
	value, err := strconv.Atoi(setting(name, otherwise))
	if err != nil {
		log.Fatalf("%s is not a whole number: %v", name, err)
	}
	return value
}

func sign(header http.Header, id string, body []byte) error {
	id, timestamp := strings.ReplaceAll(id, ".", "_"), strconv.FormatInt(time.Now().Unix(), 10)
	header.Set("webhook-id", id)
	header.Set("webhook-timestamp", timestamp)
	secret := os.Getenv("WEBHOOK_SECRET")
	if secret == "" {
		return nil
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return errors.New("WEBHOOK_SECRET is not whsec_ and base64")
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, body)
	header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return nil
}

func hash(key, data []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(data)
	return mac.Sum(nil)
}

// The body of a message, opened if it is sealed: ../../../docs/sealed-payloads.md.
func body(msg jetstream.Msg) ([]byte, error) {
	seal, sealed := msg.Headers().Get("Walhook-Sealed"), msg.Data()
	if seal == "" {
		return sealed, nil
	}
	parts := strings.Split(seal, " ") // v1 <key>.<key id> <event id>
	if len(parts) != 3 || parts[0] != "v1" || strings.ContainsAny(parts[1], "/\\") || len(sealed) < 44 {
		return nil, fmt.Errorf("sealed in a way that this worker does not know: %s", seal)
	}
	digits, err := os.ReadFile(filepath.Join(os.Getenv("SEAL_KEYS_DIR"), parts[1]))
	if err != nil {
		return nil, fmt.Errorf("sealed with the key %s: %w", parts[1], err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(digits)))
	if err != nil || len(secret) != 32 {
		return nil, fmt.Errorf("the file of the key %s does not hold 64 hexadecimal digits", parts[1])
	}
	salt, nonce, sealed := sealed[:16], sealed[16:28], sealed[28:]
	// HKDF-SHA256 for one block.
	key := hash(hash(salt, secret), []byte("walhook sealed v1\x01"))
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, nonce, sealed, []byte(seal))
}

func call(msg jetstream.Msg) error {
	data, err := body(msg)
	if err != nil {
		return err
	}
	var event event
	if err := json.Unmarshal(data, &event); err != nil {
		return err
	}
	request, err := http.NewRequest("POST", setting("WEBHOOK_URL", event.URL), bytes.NewReader(event.Data))
	if err != nil {
		return err
	}
	request.Header.Set("content-type", "application/json")
	for name, value := range event.Headers {
		request.Header.Set(name, value)
	}
	if err := sign(request.Header, event.ID, event.Data); err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20)) // the connection is free for the next call
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("answered %s", response.Status)
	}
	return nil
}

func giveUp(js jetstream.JetStream, msg jetstream.Msg, sequence uint64, reason string) error {
	letter := nats.NewMsg("dlq." + msg.Subject())
	letter.Data = msg.Data()
	letter.Header.Set("Nats-Msg-Id", fmt.Sprintf("dlq.%s.%s.%d", stream, durable, sequence))
	letter.Header.Set("Walhook-Reason", strings.Join(strings.Fields(reason), " "))
	if seal := msg.Headers().Get("Walhook-Sealed"); seal != "" {
		letter.Header.Set("Walhook-Sealed", seal) // without it nobody can open the letter
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := js.PublishMsg(ctx, letter); err != nil {
		return err
	}
	return msg.Term()
}

func handle(js jetstream.JetStream, msg jetstream.Msg) error {
	started := time.Now()
	defer func() { calls.Add(1); nanoseconds.Add(int64(time.Since(started))) }()
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	failed := call(msg)
	if failed == nil {
		return msg.Ack()
	}
	log.Printf("%s #%d, attempt %d: %v", msg.Subject(), meta.Sequence.Stream, meta.NumDelivered, failed)
	wait := min(time.Duration(retryMs)*time.Millisecond<<min(meta.NumDelivered-1, 22), time.Hour)
	if meta.NumDelivered >= uint64(maxAttempts) {
		err := giveUp(js, msg, meta.Sequence.Stream, failed.Error())
		if err == nil {
			return nil
		}
		log.Printf("dead letter: %v", err) // no stream takes it: the event stays
	}
	return msg.NakWithDelay(wait)
}

func lane(ctx context.Context, js jetstream.JetStream, consumer jetstream.Consumer) {
	for ctx.Err() == nil {
		msg, err := consumer.Next(jetstream.FetchMaxWait(2 * time.Second))
		if err == nil {
			err = handle(js, msg)
		}
		if err != nil && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, jetstream.ErrNoMessages) {
			log.Printf("cannot take from %s: %v", stream, err) // the connection comes back by itself
			time.Sleep(time.Second)
		}
	}
}

func report(consumer jetstream.Consumer, address string) {
	database, err := sql.Open("postgres", address)
	if err != nil {
		log.Fatalf("DATABASE_URL: %v", err)
	}
	database.SetMaxOpenConns(1)
	for range time.Tick(time.Duration(statsMs) * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		info, err := consumer.Info(ctx)
		if err == nil {
			var average sql.NullFloat64
			if count := calls.Load(); count > 0 {
				average = sql.NullFloat64{Float64: float64(nanoseconds.Load()) / 1e6 / float64(count), Valid: true}
			}
			_, err = database.ExecContext(ctx, "SELECT rule_nats_consumer_update_stats($1, $2, $3, $4, $5, $6)",
				stream, durable, info.Delivered.Consumer, info.AckFloor.Consumer,
				info.NumPending+uint64(info.NumAckPending), average)
		}
		cancel()
		if err != nil {
			log.Printf("statistics: %v", err) // they hold nothing up
		}
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	closed := make(chan struct{})
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		log.Fatalf("cannot connect to %s: %v", url, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable:    durable,
		AckPolicy:  jetstream.AckExplicitPolicy,
		AckWait:    30 * time.Second, // longer than a call may take
		MaxDeliver: -1,               // attempts are counted here, so that none ends without a dead letter
	})
	if err != nil {
		log.Fatalf("cannot have the consumer %s on %s: %v", durable, stream, err)
	}
	if address := os.Getenv("DATABASE_URL"); address != "" {
		go report(consumer, address)
	}
	log.Printf("%s takes from %s at %s", durable, stream, url)
	var lanes sync.WaitGroup
	for range inFlight {
		lanes.Add(1)
		go func() { defer lanes.Done(); lane(ctx, js, consumer) }()
	}
	lanes.Wait()
	if nc.Drain() == nil { // the last acknowledgements are out
		<-closed
	}
}
