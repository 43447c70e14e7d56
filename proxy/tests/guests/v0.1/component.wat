;; Version 0.1 of the contract, called in full without any SDK: a guest that asks for everything that a balancer may
;; ask, traps when a fact of an HTTP request is missing, and otherwise rotates over the slots.
(module
  (import "heddle:policy/request@0.1.0" "service" (func $service (param i32)))
  (import "heddle:policy/request@0.1.0" "client-ip" (func $client_ip (param i32)))
  (import "heddle:policy/request@0.1.0" "method" (func $method (param i32)))
  (import "heddle:policy/request@0.1.0" "path" (func $path (param i32)))
  (import "heddle:policy/request@0.1.0" "header" (func $header (param i32 i32 i32)))
  (import "heddle:policy/request@0.1.0" "sni" (func $sni (param i32)))
  (import "heddle:policy/request@0.1.0" "identity" (func $identity (param i32)))
  (import "heddle:policy/request@0.1.0" "attempt" (func $attempt (param i32)))
  (import "heddle:policy/request@0.1.0" "tried" (func $tried (param i32)))
  (import "heddle:policy/load@0.1.0" "in-flight" (func $in_flight (param i32) (result i32)))
  (import "heddle:policy/load@0.1.0" "in-flight-all" (func $in_flight_all (param i32)))
  (import "heddle:policy/load@0.1.0" "latency-micros" (func $latency (param i32) (result i32)))
  (import "heddle:policy/load@0.1.0" "latency-micros-all" (func $latency_all (param i32)))
  (import "heddle:policy/clock@0.1.0" "now-micros" (func $now (result i64)))
  (import "heddle:policy/log@0.1.0" "write" (func $write (param i32 i32 i32)))

  ;; 0: an empty result. 16: the answer of `pick`. 32: what a fact is answered with. 64: texts.
  (memory (export "memory") 4)
  (data (i32.const 64) "guest of version 0.1")
  (data (i32.const 96) "host")

  (global $free (mut i32) (i32.const 4096))
  (global $endpoints (mut i32) (i32.const 0))
  (global $last (mut i32) (i32.const -1))

  (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
    (local $place i32)
    (local.set $place
      (i32.and (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
               (i32.sub (i32.const 0) (local.get $align))))
    (global.set $free (i32.add (local.get $place) (local.get $size)))
    (local.get $place))

  (func $expect_some (if (i32.eqz (i32.load8_u (i32.const 32))) (then (unreachable))))
  (func $expect_none (if (i32.load8_u (i32.const 32)) (then (unreachable))))

  (func (export "configure") (param $config i32) (param $length i32) (param $seed i64) (result i32)
    ;; One JSON object.
    (if (i32.ne (i32.load8_u (local.get $config)) (i32.const 123)) (then (unreachable)))
    ;; There is no request yet.
    (call $service (i32.const 32)) (call $expect_none)
    (call $path (i32.const 32)) (call $expect_none)
    (call $attempt (i32.const 32)) (call $expect_none)
    (global.set $free (i32.const 4096))
    (i32.const 0))

  (func (export "update") (param $removed i32) (param $removals i32) (param $added i32) (param $additions i32)
    (local $entry i32)
    (local $left i32)
    (global.set $endpoints
      (i32.add (i32.sub (global.get $endpoints) (local.get $removals)) (local.get $additions)))
    ;; Each endpoint is 40 bytes: slot, id, address, weight, order, metadata. A weight is at least 1, and an id is
    ;; longer than the address.
    (local.set $entry (local.get $added))
    (local.set $left (local.get $additions))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $left)))
        (if (i32.eqz (i32.load offset=20 (local.get $entry))) (then (unreachable)))
        (if (i32.le_u (i32.load offset=8 (local.get $entry)) (i32.load offset=16 (local.get $entry)))
          (then (unreachable)))
        (local.set $entry (i32.add (local.get $entry) (i32.const 40)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $next)))
    (global.set $free (i32.const 4096)))

  (func (export "eligible") (param $bits i32) (param $words i32)
    (global.set $free (i32.const 4096)))

  (func (export "pick") (result i32)
    (if (i32.eqz (global.get $endpoints)) (then (return (i32.const 0))))
    (call $service (i32.const 32)) (call $expect_some)
    (call $client_ip (i32.const 32)) (call $expect_some)
    (call $method (i32.const 32)) (call $expect_some)
    (call $path (i32.const 32)) (call $expect_some)
    (call $attempt (i32.const 32)) (call $expect_some)
    (call $sni (i32.const 32)) (call $expect_none)
    (call $identity (i32.const 32)) (call $expect_none)
    (call $header (i32.const 96) (i32.const 4) (i32.const 32))
    (call $tried (i32.const 32))
    (drop (call $in_flight (i32.const 0)))
    (call $in_flight_all (i32.const 32))
    ;; The list reaches to the highest slot in use.
    (if (i32.ne (i32.load (i32.const 36)) (global.get $endpoints)) (then (unreachable)))
    (drop (call $latency (i32.const 0)))
    (call $latency_all (i32.const 32))
    (if (i32.ne (i32.load (i32.const 36)) (global.get $endpoints)) (then (unreachable)))
    (drop (call $now))
    (call $write (i32.const 3) (i32.const 64) (i32.const 20))
    (global.set $free (i32.const 4096))
    (global.set $last (i32.rem_u (i32.add (global.get $last) (i32.const 1)) (global.get $endpoints)))
    (i32.store8 (i32.const 16) (i32.const 1))
    (i32.store (i32.const 20) (global.get $last))
    (i32.const 16)))
