package deploy

import (
	"encoding/csv"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestCollectorExamples: the examples ask for elements that there are, by the names that collectors get.
func TestCollectorExamples(t *testing.T) {
	f, err := os.Open("../templates/elements.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	upper := regexp.MustCompile(`[A-Z]`)
	for _, r := range rows {
		names[upper.ReplaceAllStringFunc(r[0], func(s string) string { return "_" + strings.ToLower(s) })] = true
	}
	ours := regexp.MustCompile(`\b((?:source|destination|tcp|transport|retransmitted|reverse)_\w+)`)
	for _, file := range []string{"collectors/nfacctd.conf", "collectors/clickhouse/tables.sql"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := ours.FindAllString(string(b), -1)
		if len(found) < 6 {
			t.Errorf("%s: %v", file, found)
		}
		for _, name := range found {
			if !names[name] {
				t.Errorf("%s: there is no %s", file, name)
			}
		}
	}
}
