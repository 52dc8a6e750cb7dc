// Lets the host reach a cluster's API server, which listens in a network namespace of its own.
//
//	forward PORT-FILE NETNS ADDRESS
//
// A socket belongs to the namespace that it was opened in, whatever becomes of the process. So forward listens on
// 127.0.0.1 here, then runs itself inside NETNS with that socket, and dials ADDRESS from there like any program.
// The port is the one in PORT-FILE or, when there is none yet, a free one that it then writes to it.
package main

import (
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

func main() {
	var err error
	switch len(os.Args) {
	case 4:
		err = listen(os.Args[1], os.Args[2], os.Args[3])
	case 3:
		err = serve(os.Args[1], os.Args[2])
	default:
		err = errors.New("usage: forward PORT-FILE NETNS ADDRESS")
	}
	log.Fatal(err)
}

func listen(portFile, netns, address string) error {
	port, err := os.ReadFile(portFile)
	if errors.Is(err, fs.ErrNotExist) {
		port = []byte("0")
	} else if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+strings.TrimSpace(string(port)))
	if err != nil {
		return err
	}
	chosen := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	if err := os.WriteFile(portFile+".new", []byte(chosen+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.Rename(portFile+".new", portFile); err != nil {
		return err
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	fd := file.Fd()
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFD, 0); errno != 0 {
		return errno
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	inside := []string{"nsenter", "--net=" + netns, "--", os.Args[0], strconv.Itoa(int(fd)), address}
	defer runtime.KeepAlive(file) // whose finalizer closes it
	return syscall.Exec(nsenter, inside, os.Environ())
}

func serve(fd, address string) error {
	number, err := strconv.Atoi(fd)
	if err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(uintptr(number), "listener"))
	if err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go forward(client.(*net.TCPConn), address)
	}
}

func forward(client *net.TCPConn, address string) {
	defer client.Close()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		log.Print(err)
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	var both sync.WaitGroup
	both.Go(func() { pipe(server, client) })
	both.Go(func() { pipe(client, server) })
	both.Wait()
}

// pipe passes on the end of one direction and leaves the other open; a broken connection ends both.
func pipe(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	to.CloseWrite()
}
