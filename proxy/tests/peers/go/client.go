package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The result of a command.
type outcome struct {
	Status  int    `json:"status"`
	Length  int64  `json:"length"`
	Sum     string `json:"sum"`
	Text    string `json:"text"`
	Trailer string `json:"trailer"`
	Interim []int  `json:"interim"`
	Error   string `json:"error"`
}

const timeout = 6 * time.Second

func runClient(isHTTP2 bool) error {
	transport := &http.Transport{DisableCompression: true, ExpectContinueTimeout: timeout}
	if isHTTP2 {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetUnencryptedHTTP2(true)
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		result := command(transport, isHTTP2, words[0], words[1], words[2], words[3:])
		if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
			return err
		}
	}
	return lines.Err()
}

func command(transport *http.Transport, isHTTP2 bool, verb, address, id string, rest []string) outcome {
	switch verb {
	case "get", "leave":
		return exchange(transport, address, id, http.MethodGet, rest[0], 0, map[string]bool{verb: true})
	case "post":
		size, _ := strconv.Atoi(rest[1])
		options := map[string]bool{}
		for _, option := range strings.Split(rest[2], ",") {
			options[option] = true
		}
		return exchange(transport, address, id, http.MethodPost, rest[0], size, options)
	case "raw":
		if isHTTP2 {
			return rawHTTP2(address, id, rest[0])
		}
		return rawHTTP1(address, id, rest[0])
	}
	return outcome{Error: "no such command"}
}

func exchange(transport *http.Transport, address, id, method, path string, size int, options map[string]bool) (result outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
		result.Interim = append(result.Interim, code)
		return nil
	}}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, "http://"+address+path, nil)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	request.Header.Set("x-id", id)
	answered := make(chan struct{})
	written := make(chan struct{})
	if method == http.MethodPost {
		reader, writer := io.Pipe()
		request.Body, request.ContentLength = reader, -1
		if options["length"] {
			request.ContentLength = int64(size)
		}
		if options["expect"] {
			request.Header.Set("expect", "100-continue")
		}
		if options["trailers"] {
			request.Trailer = http.Header{"X-Check": nil}
		}
		go func() {
			defer close(written)
			leave := func(after time.Duration) {
				time.Sleep(after)
				cancel()
				writer.CloseWithError(context.Canceled)
			}
			switch {
			case options["leave-head"]:
				leave(250 * time.Millisecond)
			case options["leave-body"]:
				writePattern(writer, size/2)
				leave(50 * time.Millisecond)
			case options["leave-end"]:
				writePattern(writer, size)
				leave(50 * time.Millisecond)
			default:
				first := size
				if options["pause"] {
					first = 65_536
				}
				err := writePattern(writer, first)
				if options["pause"] && err == nil {
					select {
					case <-answered:
					case <-ctx.Done():
					}
					err = writePattern(writer, size-first)
				}
				if options["trailers"] {
					request.Trailer.Set("x-check", "up")
				}
				writer.CloseWithError(err)
			}
		}()
	} else {
		close(written)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		result.Error = err.Error()
		return result
	}
	defer response.Body.Close()
	result.Status = response.StatusCode
	if options["leave"] {
		io.CopyN(io.Discard, response.Body, 1000)
		result.Error = "left"
		return result
	}
	hash := sha256.New()
	var text bytes.Buffer
	body := io.Reader(response.Body)
	if options["pause"] {
		// Reads the early response first: the rest of the request body waits for it.
		early, _ := io.ReadAll(io.LimitReader(response.Body, 5))
		close(answered)
		body = io.MultiReader(bytes.NewReader(early), response.Body)
	}
	result.Length, err = io.Copy(io.MultiWriter(hash, &text), body)
	if err != nil {
		result.Error = err.Error()
	}
	result.Sum = checksum(hash.Sum(nil))
	if text.Len() <= 200 {
		result.Text = text.String()
	}
	result.Trailer = response.Trailer.Get("x-check")
	if options["pause"] {
		<-written
	}
	return result
}

// What client libraries cannot do: parts of messages, and half-closed connections.
func rawHTTP1(address, id, kind string) outcome {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(timeout))
	head := func(method, path, more string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nhost: app\r\nx-id: %s\r\n%s\r\n", method, path, id, more)
	}
	said := map[string]string{
		"half-close":        head("GET", "/plain", "connection: close\r\n"),
		"half-close-upload": head("POST", "/upload", "content-length: 16\r\n") + pattern,
		"mid-head":          "GET /plain HTTP/1.1\r\nhost: app\r\nx-id: " + id + "\r\nx-more",
		"nothing":           "",
	}
	io.WriteString(connection, said[kind])
	if !strings.HasPrefix(kind, "half-close") {
		time.Sleep(20 * time.Millisecond)
		return outcome{Error: "left"}
	}
	connection.(*net.TCPConn).CloseWrite()
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	text, err := io.ReadAll(response.Body)
	result := outcome{Status: response.StatusCode, Length: int64(len(text)), Text: string(text)}
	if err != nil {
		result.Error = err.Error()
	}
	return result
}

func rawHTTP2(address, id, kind string) outcome {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(timeout))
	io.WriteString(connection, http2.ClientPreface)
	framer := http2.NewFramer(connection, connection)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	method, path := "GET", "/plain"
	if kind != "half-close" && kind != "mid-head" {
		method, path = "POST", "/upload"
	}
	for _, field := range [][2]string{{":method", method}, {":scheme", "http"}, {":authority", "app"}, {":path", path}, {"x-id", id}} {
		encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	left := func() outcome {
		time.Sleep(50 * time.Millisecond)
		return outcome{Error: "left"}
	}
	hasBody := method == "POST"
	headers := http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: kind != "mid-head", EndStream: !hasBody && kind != "mid-head",
	}
	switch kind {
	case "nothing":
		return left()
	case "mid-head":
		framer.WriteHeaders(headers)
		return left()
	}
	framer.WriteHeaders(headers)
	switch kind {
	case "half-close-upload":
		framer.WriteData(1, true, []byte(pattern))
	case "reset-no-error", "reset-cancel":
		framer.WriteData(1, false, []byte(pattern))
		time.Sleep(50 * time.Millisecond)
		code := map[string]http2.ErrCode{"reset-no-error": http2.ErrCodeNo, "reset-cancel": http2.ErrCodeCancel}[kind]
		framer.WriteRSTStream(1, code)
		return left()
	case "go-away":
		framer.WriteData(1, false, []byte(pattern))
		time.Sleep(50 * time.Millisecond)
		framer.WriteGoAway(0, http2.ErrCodeNo, nil)
		return left()
	}
	connection.(*net.TCPConn).CloseWrite()
	var result outcome
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return outcome{Error: err.Error()}
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			result.Status, _ = strconv.Atoi(frame.PseudoValue("status"))
		case *http2.DataFrame:
			result.Text += string(frame.Data())
			result.Length = int64(len(result.Text))
		case *http2.RSTStreamFrame:
			return outcome{Error: errors.New(frame.ErrCode.String()).Error()}
		case *http2.GoAwayFrame:
			continue
		}
		if header := frame.Header(); header.StreamID == 1 && header.Flags.Has(http2.FlagDataEndStream) {
			return result
		}
	}
}
