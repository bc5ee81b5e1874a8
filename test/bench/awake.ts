/**
 * Keeping the machine's CPUs from halting while something is measured: a virtual one that halts takes up to half a millisecond
 * to wake, and depth 1 would measure only that.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { Program } from "./processes.ts";

/**
 * `polling`: the kernel's idle loop polls. `loops`: busy loops of the lowest priority, which yield to everything else but
 * make a CPU look busy, so that the scheduler now and then leaves two programs on one.
 */
export type AwakeBy = "polling" | "loops";

export interface Awake {
  readonly by: AwakeBy;
  /** Lets them halt again. */
  end(): Promise<void>;
}

const CPUIDLE = "/sys/devices/system/cpu/cpuidle";
const HALTPOLL = "/sys/module/haltpoll/parameters";
/** Longer than anything that is measured takes to come. */
const POLL_NANOSECONDS = 1_000_000_000;

/** Keeps all CPUs awake until it is told to end, or this process ends. */
export async function keepAwake(): Promise<Awake> {
  return pollWhenIdle() ?? (await loopWhenIdle());
}

/** By the kernel's haltpoll governor; nothing where that isn't in charge or may not be told. */
function pollWhenIdle(): Awake | undefined {
  const wanted = { guest_halt_poll_allow_shrink: "N", guest_halt_poll_ns: `${POLL_NANOSECONDS}` };
  try {
    if (read(`${CPUIDLE}/current_driver`) !== "haltpoll" || read(`${CPUIDLE}/current_governor`) !== "haltpoll") {
      return undefined;
    }
    const before = Object.keys(wanted).map((name) => [name, read(`${HALTPOLL}/${name}`)] as const);
    const restore = () => {
      for (const [name, value] of before) {
        writeFileSync(`${HALTPOLL}/${name}`, value);
      }
    };
    for (const [name, value] of Object.entries(wanted)) {
      writeFileSync(`${HALTPOLL}/${name}`, value);
    }
    process.once("exit", restore);
    const end = async () => {
      process.off("exit", restore);
      restore();
    };
    return { by: "polling", end };
  } catch {
    return undefined;
  }
}

function read(path: string): string {
  return readFileSync(path, "latin1").trim();
}

async function loopWhenIdle(): Promise<Awake> {
  // It ends by itself when this process is gone.
  const loop = `while kill -0 ${process.pid}; do i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; done`;
  const loops = cpus().map(
    (_, cpu) => new Program({ program: "taskset", args: ["-c", `${cpu}`, "chrt", "-i", "0", "sh", "-c", loop] }),
  );
  await sleep(100);
  const failed = loops.find((one) => !one.alive);
  if (failed !== undefined) {
    throw failed.error("can't keep the CPUs awake");
  }
  const end = async () => {
    await Promise.all(loops.map((one) => one.stop("SIGKILL")));
  };
  return { by: "loops", end };
}
