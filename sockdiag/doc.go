// Package sockdiag is the netlink source: SOCK_DIAG_BY_FAMILY snapshots of every network namespace and the destroy
// multicast groups (sock_diag(7), include/uapi/linux/inet_diag.h). It is the complete source where eBPF is not allowed.
package sockdiag
