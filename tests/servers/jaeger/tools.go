//go:build tools

// Package tools pins the trace server that the tests query.
package tools

import _ "github.com/jaegertracing/jaeger/cmd/jaeger"
