#!/bin/sh
# Runs bench_ranks over a network of limited bandwidth on one machine: each rank in a network namespace of its own, whose
# link sends and receives RATE at most. For root, on Linux, with OpenMPI 4, iproute2.
#   network.sh RANKS RATE BURST PROGRAM [ARGUMENT...]      network.sh 2 100mbit 64kb build/release/bench/bench_ranks 5 2048
# BURST, what may be sent at once, is at least what RATE sends between two ticks of the kernel's clock (4 ms).
set -e
ranks=$1 rate=$2 burst=$3
shift 3
name=ranks$$
folder=$(mktemp -d)
clean() {
  for i in $(seq 1 "$ranks"); do ip netns del "$name-$i" 2>/dev/null || true; done
  ip netns del "$name" 2>/dev/null || true
  rm -rf "$folder"
}
trap clean EXIT
trap 'exit 1' INT TERM

ip netns add "$name"
ip -n "$name" link add br0 type bridge
ip -n "$name" link set dev br0 up
hosts=
for i in $(seq 1 "$ranks"); do
  ip netns add "$name-$i"
  ip -n "$name" link add "port$i" type veth peer name eth0 netns "$name-$i"
  ip -n "$name" link set dev "port$i" master br0 up
  ip -n "$name-$i" addr add "10.77.0.$i/24" dev eth0
  ip -n "$name-$i" link set dev lo up
  ip -n "$name-$i" link set dev eth0 up
  ip netns exec "$name-$i" tc qdisc add dev eth0 root tbf rate "$rate" burst "$burst" latency 400ms
  ip netns exec "$name" tc qdisc add dev "port$i" root tbf rate "$rate" burst "$burst" latency 400ms
  hosts=$hosts${hosts:+,}10.77.0.$i:1
done
# What mpirun calls in place of ssh: HOST COMMAND...
cat > "$folder/agent" <<END
#!/bin/sh
host=\$1
shift
exec ip netns exec $name-\${host##*.} sh -c "\$*"
END
chmod +x "$folder/agent"
ip netns exec "$name-1" mpirun --allow-run-as-root --bind-to none --host "$hosts" -n "$ranks" --map-by node \
  --mca plm_rsh_agent "$folder/agent" --mca plm rsh --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \
  --mca oob_tcp_if_include 10.77.0.0/24 --mca pml ob1 "$@"
