# What drivers of WireGuard devices have in common. Needs `ip` and `wg`; see bench/README.md.

need() {
    for program in "$@"; do
        command -v "$program" >/dev/null || { echo "there is no $program"; exit 1; }
    done
}

# Making a device loads the module, where it is one that isn't loaded.
has_wireguard() {
    [ -d /sys/module/wireguard ] && return 0
    ip link add "bprobe$$" type wireguard 2>/dev/null && ip link delete "bprobe$$"
}

# Key, peers, address and link of a device that exists.
configure() {
    wg set "$BENCH_DEVICE" listen-port "$BENCH_PORT" private-key "$BENCH_KEY"
    while read -r key endpoint prefixes; do
        wg set "$BENCH_DEVICE" peer "$key" endpoint "$endpoint" allowed-ips "$prefixes"
    done < "$BENCH_PEERS"
    ip address add "$BENCH_ADDRESS" dev "$BENCH_DEVICE"
    ip link set "$BENCH_DEVICE" mtu "$BENCH_MTU" up
}

# Until a userspace device takes commands.
await_socket() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        wg show "$BENCH_DEVICE" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    echo "$BENCH_DEVICE has no control socket"
    exit 1
}

# The harness stops the whole process group with SIGTERM.
stay() {
    echo "ready${1:+ $1}"
    while :; do sleep 3600; done
}
