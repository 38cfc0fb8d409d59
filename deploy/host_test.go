package deploy

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestSystemdUnit: systemd knows every line of the unit, and finds little left to harden.
func TestSystemdUnit(t *testing.T) {
	need(t, "systemd-analyze")
	b, err := os.ReadFile("systemd/sockflow.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program and its manual need not be installed here.
	unit := filepath.Join(t.TempDir(), "sockflow.service")
	s := strings.Replace(string(b), "/usr/bin/sockflow", "/bin/true", 1)
	s = strings.Replace(s, "man:sockflow(1) ", "", 1)
	if err := os.WriteFile(unit, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", unit)
	// An unknown key is but a warning.
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v\n%s", err, out)
	}
	run(t, "systemd-analyze", "security", "--offline=true", "--threshold=50", unit)
}

// TestExampleSettings: the settings that are installed are YAML of known shape.
func TestExampleSettings(t *testing.T) {
	b, err := os.ReadFile("systemd/sockflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var s struct{ Collector []string }
	if err := yaml.Unmarshal(b, &s); err != nil || len(s.Collector) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestImage: an OCI image of one layer with the program, the same each time, whose digests are right.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var images []string
	for _, name := range []string{"a.tar", "b.tar"} {
		out := filepath.Join(dir, name)
		run(t, "image/build.sh", program, "arm64", "docker.io/library/sockflow:test", out)
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, string(b))
	}
	if images[0] != images[1] {
		t.Error("two images of the same program differ")
	}
	files := map[string][]byte{}
	for r := tar.NewReader(strings.NewReader(images[0])); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "./")], _ = io.ReadAll(r)
	}
	blob := func(digest string) []byte {
		b := files["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")]
		if sum := sha256.Sum256(b); "sha256:"+hex.EncodeToString(sum[:]) != digest {
			t.Errorf("%s is not there, or is something else", digest)
		}
		return b
	}
	type descriptor struct {
		Digest      string
		Size        int
		Annotations map[string]string
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/library/sockflow:test" {
		t.Fatalf("%s: %v", files["index.json"], err)
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil || len(manifest.Layers) != 1 {
		t.Fatal(err)
	}
	blob(manifest.Layers[0].Digest)
	var config struct {
		Architecture string
		Config       struct{ Entrypoint []string }
	}
	if err := json.Unmarshal(blob(manifest.Config.Digest), &config); err != nil || config.Architecture != "arm64" || config.Config.Entrypoint[0] != "/sockflow" {
		t.Errorf("%+v, %v", config, err)
	}
}

// TestPackages makes deb and rpm of a stand-in for the program, where nfpm is.
func TestPackages(t *testing.T) {
	if _, err := exec.LookPath("nfpm"); err != nil {
		t.Skip("needs nfpm, which Debian does not have: go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.41.1")
	}
	dist := t.TempDir()
	for _, name := range []string{"sockflow-amd64", "man/sockflow.1", "completion/sockflow.bash", "completion/_sockflow", "completion/sockflow.fish"} {
		os.MkdirAll(filepath.Dir(filepath.Join(dist, name)), 0o755)
		os.WriteFile(filepath.Join(dist, name), []byte("x\n"), 0o755)
	}
	for _, kind := range []string{"deb", "rpm"} {
		c := exec.Command("nfpm", "package", "--config", "deploy/packaging/nfpm.yaml", "--packager", kind, "--target", dist+"/")
		c.Dir = ".."
		c.Env = append(os.Environ(), "DIST="+dist, "ARCH=amd64", "VERSION=1.2.3")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
	}
	debs, _ := filepath.Glob(dist + "/*.deb")
	if len(debs) != 1 {
		t.Fatalf("%v", debs)
	}
	out := run(t, "dpkg-deb", "-c", debs[0])
	for _, want := range []string{"./usr/bin/sockflow", "./usr/lib/systemd/system/sockflow.service", "./etc/sockflow/sockflow.yaml", "./usr/share/man/man1/sockflow.1", "./usr/share/bash-completion/completions/sockflow"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if out := run(t, "dpkg-deb", "-I", debs[0], "conffiles"); !strings.Contains(out, "/etc/sockflow/sockflow.yaml") {
		t.Error(out)
	}
}
