// What the cluster's own test runs in its pods: a server that says which pod it is, and the client's side of that.
//
//	probe serve              answers HTTP on port 8080: "server POD client ADDRESS"
//	probe get URL [TIMES]    prints the answers, each over a connection of its own
//	probe lookup NAME        prints the addresses of a name
//	probe sleep              does nothing
//	probe done               exits
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
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
		return serve()
	case "get":
		return get(args[1], args[2])
	case "lookup":
		addresses, err := net.LookupHost(args[1])
		fmt.Println(strings.Join(addresses, " "))
		return err
	case "sleep":
		time.Sleep(time.Hour)
		return nil
	case "done":
		return nil
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func serve() error {
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Println("serving as", pod)
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, "server", pod, "client", client)
	}))
}

func get(url, times string) error {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for left, _ := strconv.Atoi(times); left >= 0; left-- {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		if _, err := io.Copy(os.Stdout, response.Body); err != nil {
			return err
		}
		response.Body.Close()
	}
	return nil
}
