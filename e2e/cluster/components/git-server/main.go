// A Git server for one repository, which it creates: clones and fetches over HTTP on port 8080, by git's own CGI program,
// and archives of commits at /archive/COMMIT.tar.gz. Commits get in by `git receive-pack` in the pod.
//
//	git-server /srv/mesh.git
package main

import (
	"log"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

var commits = regexp.MustCompile("^[0-9a-f]{40}$")

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: git-server REPOSITORY")
	}
	repository := os.Args[1]
	if output, err := exec.Command("git", "init", "--bare", "--initial-branch", "main", repository).CombinedOutput(); err != nil {
		log.Fatalf("git init: %v\n%s", err, output)
	}
	git, err := exec.LookPath("git")
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /archive/{file}", func(w http.ResponseWriter, r *http.Request) {
		commit, found := strings.CutSuffix(r.PathValue("file"), ".tar.gz")
		if !found || !commits.MatchString(commit) {
			http.NotFound(w, r)
			return
		}
		archive, err := exec.Command(git, "-C", repository, "archive", "--format=tar.gz", commit).Output()
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Write(archive)
	})
	http.Handle("/", &cgi.Handler{
		Path: git,
		Args: []string{"http-backend"},
		Env:  []string{"GIT_HTTP_EXPORT_ALL=", "GIT_PROJECT_ROOT=" + filepath.Dir(repository)},
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
