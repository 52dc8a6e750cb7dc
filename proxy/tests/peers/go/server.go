package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const pattern = "0123456789abcdef"

// The state of each request by x-id, and the number of requests in flight.
type record struct {
	sync.Mutex
	open int
	seen map[string]string
}

func (record *record) put(id, text string) {
	record.Lock()
	defer record.Unlock()
	record.seen[id] = text
}

func checksum(hash []byte) string { return hex.EncodeToString(hash)[:16] }

// Writes this many octets of the pattern.
func writePattern(out io.Writer, count int) error {
	part := []byte(strings.Repeat(pattern, 4096))
	for count > 0 {
		length := min(count, len(part))
		if _, err := out.Write(part[:length]); err != nil {
			return err
		}
		count -= length
	}
	return nil
}

// Reads a request body. Returns its length, checksum and trailer, and whether it was complete.
func readBody(request *http.Request, copies ...io.Writer) (string, bool) {
	hash := sha256.New()
	count, err := io.Copy(io.MultiWriter(append(copies, hash)...), request.Body)
	if err != nil {
		return fmt.Sprintf("cut %d", count), false
	}
	told := fmt.Sprintf("%d %s", count, checksum(hash.Sum(nil)))
	if trailer := request.Trailer.Get("x-check"); trailer != "" {
		told += " " + trailer
	}
	return told, true
}

// A writer that flushes after each write.
type flusher struct {
	http.ResponseWriter
	controller *http.ResponseController
}

func (flusher flusher) Write(octets []byte) (int, error) {
	count, err := flusher.ResponseWriter.Write(octets)
	if err == nil {
		err = flusher.controller.Flush()
	}
	return count, err
}

func (record *record) answer(writer http.ResponseWriter, request *http.Request) {
	id, controller := request.Header.Get("x-id"), http.NewResponseController(writer)
	record.Lock()
	record.open++
	record.Unlock()
	record.put(id, "open")
	told := "complete"
	defer func() {
		record.put(id, told)
		record.Lock()
		record.open--
		record.Unlock()
	}()
	upload := func(copies ...io.Writer) string {
		body, isWhole := readBody(request, copies...)
		if told = body; isWhole {
			told = "complete " + body
		}
		return body
	}
	switch request.URL.Path {
	case "/plain":
		io.WriteString(writer, "plain")
	case "/download":
		count, _ := strconv.Atoi(request.URL.Query().Get("n"))
		if writePattern(writer, count) != nil {
			told = "cut"
		}
	case "/upload":
		io.WriteString(writer, upload())
	case "/echo":
		_ = controller.EnableFullDuplex()
		_ = controller.Flush()
		upload(flusher{writer, controller})
	case "/early":
		_ = controller.EnableFullDuplex()
		writer.Header().Set("content-length", "5")
		io.WriteString(writer, "early")
		_ = controller.Flush()
		upload()
	case "/refuse":
		writer.Header().Set("connection", "close")
		writer.WriteHeader(http.StatusRequestEntityTooLarge)
		told = "refused"
	case "/reject":
		writer.WriteHeader(http.StatusUnauthorized)
		told = "refused"
	case "/trailers":
		writer.Header().Set("trailer", "x-check")
		// Flushed first so that the response is chunked: with Content-Length it could not have trailers.
		_ = controller.Flush()
		writePattern(writer, 1000)
		writer.Header().Set("x-check", "down")
	case "/hints":
		writer.Header().Set("link", "</style.css>; rel=preload")
		writer.WriteHeader(http.StatusEarlyHints)
		writer.Header().Del("link")
		io.WriteString(writer, "hints")
	case "/cut":
		told = "cut"
		cut(writer, controller, request)
	default:
		writer.WriteHeader(http.StatusNotFound)
	}
}

// Aborts the response at the requested point.
func cut(writer http.ResponseWriter, controller *http.ResponseController, request *http.Request) {
	at := request.URL.Query().Get("at")
	if at == "upload" {
		io.CopyN(io.Discard, request.Body, 1000)
	}
	if at != "start" && at != "upload" {
		writer.WriteHeader(http.StatusOK)
		controller.Flush()
	}
	switch at {
	case "body":
		writePattern(writer, 1000)
	case "end":
		writer.Header().Set("trailer", "x-check")
		writePattern(writer, 100_000)
	}
	if at != "start" && at != "upload" {
		controller.Flush()
		time.Sleep(20 * time.Millisecond)
	}
	panic(http.ErrAbortHandler)
}

func serve(port, control int, isHTTP2 bool) error {
	record := &record{seen: map[string]string{}}
	var protocols http.Protocols
	protocols.SetHTTP1(!isHTTP2)
	protocols.SetUnencryptedHTTP2(isHTTP2)
	errors := make(chan error)
	server := http.Server{
		Addr: fmt.Sprintf(":%d", port), Handler: http.HandlerFunc(record.answer), Protocols: &protocols,
	}
	go func() { errors <- server.ListenAndServe() }()
	go func() {
		errors <- http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", control), http.HandlerFunc(record.tell))
	}()
	return <-errors
}

func (record *record) tell(writer http.ResponseWriter, request *http.Request) {
	record.Lock()
	defer record.Unlock()
	if id := request.URL.Query().Get("id"); id != "" {
		told, isKnown := record.seen[id]
		if !isKnown {
			told = "none"
		}
		io.WriteString(writer, told)
		return
	}
	fmt.Fprint(writer, record.open)
}
