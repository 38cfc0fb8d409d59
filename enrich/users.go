package enrich

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// users maps user ids to names by /etc/passwd, read again when it changes. It does not ask name services: they
// may hang, and the data path must not.
type users struct {
	path  string
	mtime time.Time
	names map[uint32]string
}

func newUsers(path string) *users {
	u := &users{path: path}
	if now := u.changed(); now != nil {
		return now
	}
	return u
}

func (u *users) name(uid uint32) string {
	if uid == flowcache.NoID {
		return ""
	}
	return u.names[uid]
}

// changed returns the users that there are now, nil if the file has not changed or cannot be read. Safe for
// concurrent use with name.
func (u *users) changed() *users {
	st, err := os.Stat(u.path)
	if err != nil || st.ModTime().Equal(u.mtime) {
		return nil
	}
	b, err := os.ReadFile(u.path)
	if err != nil {
		return nil
	}
	now := &users{path: u.path, mtime: st.ModTime(), names: make(map[uint32]string)}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":") // passwd(5)
		if len(f) < 3 {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if _, taken := now.names[uint32(uid)]; err == nil && !taken {
			now.names[uint32(uid)] = f[0]
		}
	}
	return now
}
