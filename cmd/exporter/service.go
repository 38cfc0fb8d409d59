package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	readyState    = daemon.SdNotifyReady
	stoppingState = daemon.SdNotifyStopping
)

// notifyService sends state to a service manager that asks for it ($NOTIFY_SOCKET, sd_notify(3)). Without one it does
// nothing.
func notifyService(state string) { daemon.SdNotify(false, state) }

// reloadingState has the time that systemd wants with it (Type=notify-reload).
func reloadingState() string {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, ts.Nano()/1000)
}

// watchdog notifies the service manager that the program works, as long as the cache loop answers: every record passes
// it. It returns at once where no watchdog is asked for ($WATCHDOG_USEC).
func watchdog(ctx context.Context, m *metrics) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if m.answers(ctx) {
				notifyService(daemon.SdNotifyWatchdog)
			}
		}
	}
}
