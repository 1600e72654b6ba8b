//go:build tools

// Package tools pins the API server that the tests start.
package tools

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
