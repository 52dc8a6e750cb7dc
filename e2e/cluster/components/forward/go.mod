module weft.dev/e2e/cluster/forward

go 1.26.0
