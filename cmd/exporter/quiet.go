package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// beQuiet asks the scheduler to treat this program as work that can wait its turn (SCHED_BATCH, sched(7)): it keeps its fair share,
// but when it wakes up it takes no processor away from who is running. On a machine with no idle core that matters more to
// the programs that are metered than the time the metering takes. Threads that come later inherit it.
func beQuiet() {
	const schedBatch = 3
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedBatch}, 0) // where it is refused nothing is lost
		}
	}
}
