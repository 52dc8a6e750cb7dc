// The Go peer: a server and a client of net/http, the interoperability tests of grpc-go, and Go's HPACK.
//
//	peer server PORT CONTROL-PORT h1|h2
//	peer client h1|h2                      reads commands from standard input: see proxy/tests/peers/matrix.rs
//	peer grpc-server PORT
//	peer grpc-client ADDRESS CASE...
//	peer hpack encode SEED STORIES BLOCKS | decode
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	number := func(at int) int {
		value, err := strconv.Atoi(arguments[at])
		if err != nil {
			panic(err)
		}
		return value
	}
	switch name := arguments[0]; name {
	case "server":
		return serve(number(1), number(2), arguments[3] == "h2")
	case "client":
		return runClient(arguments[1] == "h2")
	case "grpc-server":
		return grpcServe(number(1))
	case "grpc-client":
		return grpcCall(arguments[1], arguments[2:])
	case "hpack":
		out := bufio.NewWriter(os.Stdout)
		defer out.Flush()
		if arguments[1] == "decode" {
			return hpackDecode(os.Stdin, out)
		}
		return hpackEncode(int64(number(2)), number(3), number(4), out)
	default:
		return fmt.Errorf("no such command: %s", name)
	}
}
