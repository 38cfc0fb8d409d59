// Package enrich names what is behind a flow: process facts, user, container and systemd unit of a control group.
package enrich
