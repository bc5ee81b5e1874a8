/** What a run of the benchmark yields, as it is kept in `build/bench/*.json`. Figures only; judging them is for reports. */

import type { AwakeBy } from "./awake.ts";

/** How file contents are cached, the same for all contenders of a case. */
export type CacheMode = "buffered" | "direct";

export interface Latency {
  /** Microseconds. */
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
}

/** One contender in one round of one case. */
export interface Measurement {
  readonly operations: number;
  readonly perSecond: number;
  readonly megabytesPerSecond: number;
  readonly latency: Latency;
  /** CPU time of the program that serves, for each operation; the limit has no server, so it is that of the client. */
  readonly cpuMicroseconds: number;
  /** Resident memory of that program afterwards, with what it has mapped. */
  readonly residentBytes: number;
  /** How many of its threads used more than a fiftieth of a CPU. */
  readonly busyThreads?: number | undefined;
  /** Garbage collections in the threads that serve disks, where it tells of them. */
  readonly collections?: Collections | undefined;
}

export interface Collections {
  readonly count: number;
  /** The longest pause in milliseconds; 0 for none. */
  readonly longest: number;
}

/** Or why there is none. */
export interface Failure {
  readonly error: string;
}

export type Outcome = Measurement | Failure;

export interface CaseResult {
  readonly case: string;
  readonly mode: CacheMode;
  /** By contender; one for each round. */
  readonly outcomes: Readonly<Record<string, readonly Outcome[]>>;
}

/** Something that was measured by itself, several times. */
export interface Probe {
  readonly name: string;
  readonly values: readonly number[];
  /** What one has to know about the figures, or why there are none. */
  readonly note?: string | undefined;
}

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly kernel: string;
  readonly fileSystem: string;
  /** Program and version. */
  readonly versions: Readonly<Record<string, string>>;
}

/** What else the machine did. */
export interface Load {
  /** How much of its CPU time was in use just before, from 0 to 1. */
  readonly busyBefore: number;
  /** How much CPU time the hypervisor gave to others while it ran, from 0 to 1. */
  readonly stolen: number;
  /** How CPUs were kept from halting. */
  readonly awake: AwakeBy;
}

export interface Run {
  /** ISO 8601. */
  readonly started: string;
  readonly minutes: number;
  readonly commit: string;
  readonly machine: Machine;
  readonly load: Load;
  readonly rounds: number;
  readonly seconds: number;
  readonly diskBytes: number;
  /** Whether nothing was left out that runs by default. */
  readonly complete: boolean;
  readonly results: readonly CaseResult[];
  readonly probes: readonly Probe[];
}

export function isMeasurement(outcome: Outcome): outcome is Measurement {
  return !("error" in outcome);
}

/** Operations per second in each round. */
export function rates(result: CaseResult, contender: string): (number | undefined)[] {
  return measured(result, contender, (measurement) => measurement.perSecond);
}

/** How many CPUs the program that serves kept busy. */
export function cores({ cpuMicroseconds, perSecond }: Measurement): number {
  return (cpuMicroseconds * perSecond) / 1e6;
}

/** A figure in each round; `undefined` where there is none. */
export function measured(
  result: CaseResult,
  contender: string,
  figure: (measurement: Measurement) => number,
): (number | undefined)[] {
  return (result.outcomes[contender] ?? []).map((outcome) => (isMeasurement(outcome) ? figure(outcome) : undefined));
}
