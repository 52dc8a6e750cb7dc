module weft.dev/e2e/cluster/git-server

go 1.26.0
