//go:build tools

// Package tools pins the server that the tests start.
package tools

import _ "go.etcd.io/etcd/server/v3"
