package runtimes

import (
	"strings"
	"unicode/utf8"
)

// Labels that kubelet and the CRI runtimes put on pods and containers.
const (
	podName       = "io.kubernetes.pod.name"
	podNamespace  = "io.kubernetes.pod.namespace"
	podUID        = "io.kubernetes.pod.uid"
	containerName = "io.kubernetes.container.name"
)

const (
	maxLabel  = 256  // octets of a value
	maxLabels = 1024 // of all
)

// choose returns the labels of these keys, in their order, as key=value separated by commas. A comma in a value becomes a semicolon.
func choose(keys []string, labels map[string]string) string {
	var b strings.Builder
	for _, k := range keys {
		v, ok := labels[k]
		if !ok {
			continue
		}
		v = strings.ReplaceAll(cut(v, maxLabel), ",", ";")
		if b.Len()+len(k)+len(v)+2 > maxLabels {
			break
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(v)
	}
	return b.String()
}

// cut returns at most most octets of s, whole characters: what is not UTF-8 is left out.
func cut(s string, most int) string {
	if len(s) > most {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}
