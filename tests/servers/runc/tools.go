//go:build tools

// Package tools pins the program that starts the containers of the cluster lab's nodes.
package tools

import _ "github.com/opencontainers/runc"
