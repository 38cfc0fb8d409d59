package collector

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// readIANA makes iana.txt of IANA's registry as XML.
func readIANA(b []byte) ([]byte, error) {
	var doc struct {
		Updated    string `xml:"updated"`
		Registries []struct {
			ID      string `xml:"id,attr"`
			Records []struct {
				ID   string `xml:"elementId"`
				Type string `xml:"dataType"`
				Name string `xml:"name"`
			} `xml:"record"`
		} `xml:"registry"`
	}
	if err := xml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	text := bytes.NewBufferString(datePrefix + doc.Updated + "\n")
	for _, r := range doc.Registries {
		if r.ID != "ipfix-information-elements" {
			continue
		}
		for _, e := range r.Records {
			if _, err := strconv.Atoi(e.ID); err != nil || e.Type == "" {
				continue // a range, or reserved
			}
			line := fmt.Sprintf("%s %s %s", e.ID, e.Type, strings.TrimSpace(e.Name))
			if _, err := parseElement(line); err != nil {
				return nil, err
			}
			fmt.Fprintln(text, line)
		}
	}
	if bytes.Count(text.Bytes(), []byte("\n")) < 500 {
		return nil, errors.New("it is not IANA's registry")
	}
	return text.Bytes(), nil
}

func TestReadIANA(t *testing.T) {
	if _, err := readIANA([]byte("<registry><updated>2026-01-01</updated></registry>")); err == nil {
		t.Error("an empty registry was taken")
	}
}
