/** Signals, and whatever else makes a command stop: work that should not just be cut off is asked to end instead. */

import { constants } from "node:os";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Work that is under way. */
interface Work {
  readonly stop: () => void;
  /** Whether a second interruption ends the program. */
  readonly patient: boolean;
}

let running: Work | undefined;
let requested: number | undefined;

/** Asks what runs to end; where nothing does, or it was asked before, ends the program with `status`. */
export function interrupt(status: number): void {
  if (running === undefined || (requested !== undefined && !running.patient)) {
    process.exit(status);
  }
  if (requested === undefined) {
    requested = status;
    running.stop();
  }
}

/** The status that the program should end with because it was interrupted. */
export function interrupted(): number | undefined {
  return requested;
}

function onSignal(signal: NodeJS.Signals): void {
  interrupt(128 + constants.signals[signal]);
}

/**
 * Runs `work`, which a signal asks to end by calling `stop`. A second signal ends the program, unless the work is `patient`:
 * then it is ended by itself alone. Work may be part of other work: then both are asked.
 */
export async function interruptible<T>(stop: () => void, work: () => Promise<T>, patient = false): Promise<T> {
  const whole = running;
  const stopBoth = () => {
    stop();
    whole?.stop();
  };
  running = { stop: stopBoth, patient };
  if (whole === undefined) for (const signal of SIGNALS) process.on(signal, onSignal);
  try {
    return await work();
  } finally {
    running = whole;
    if (whole === undefined) for (const signal of SIGNALS) process.off(signal, onSignal);
  }
}
