// What the cluster's own test runs in its pods: a server that says which pod it is, and the client's side of that.
//
//	probe serve            answers HTTP on port 8080 with the pod's name
//	probe get URL          prints the answer
//	probe lookup NAME      prints the addresses of a name
//	probe done             exits
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	if err := run(append(os.Args[1:], "", "")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "serve":
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		fmt.Println("serving as", name)
		return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, name)
		}))
	case "get":
		client := http.Client{Timeout: 2 * time.Second}
		response, err := client.Get(args[1])
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(os.Stdout, response.Body)
		return err
	case "lookup":
		addresses, err := net.LookupHost(args[1])
		fmt.Println(strings.Join(addresses, " "))
		return err
	case "done":
		return nil
	}
	return fmt.Errorf("unknown command %q", args[0])
}
