/** What is measured of ours alone: how soon a disk answers, what it costs to have one, and system calls. */

/** Probes that are measured together. */
export const probeGroups = [
  { name: "starting" },
  { name: "chain" },
  { name: "memory" },
  { name: "system-calls" },
  { name: "flushes" },
] as const;

export type ProbeGroup = (typeof probeGroups)[number];

/** What a probe measures, and what must be reached. */
export interface ProbeKind {
  readonly name: string;
  readonly group: ProbeGroup["name"];
  readonly title: string;
  readonly unit: string;
  /** The median must be at most this. */
  readonly most?: number;
}

/** How many disks the process has whose memory is compared with that of a process with one. */
export const MANY_DISKS = 32;
export const CHAIN_LENGTH = 30;
/** Of the writes whose flushes are counted. */
export const FLUSH_DEPTHS = [1, 32] as const;

const MEMORY = `with ${MANY_DISKS} disks of 10 GiB under load, for each but the first`;

export const probeKinds: readonly ProbeKind[] = [
  {
    name: "first-answer",
    group: "starting",
    title: "from exec to the first answered request over NBD",
    unit: "ms",
    most: 150,
  },
  {
    name: "chain-answer",
    group: "chain",
    title: `from exec to the first answer of a chain of ${CHAIN_LENGTH} images of 2040 GiB`,
    unit: "ms",
  },
  { name: "resident", group: "starting", title: "resident memory with one disk of 10 GiB, read once", unit: "MiB" },
  {
    name: "resident-loaded",
    group: "memory",
    title: "resident memory with one disk of 10 GiB under load",
    unit: "MiB",
  },
  // V8 maps its own machine code once more for each thread: the same pages, which count each time in what is resident.
  { name: "resident-disk", group: "memory", title: `resident memory ${MEMORY}`, unit: "MiB" },
  {
    name: "proportional-disk",
    group: "memory",
    title: `proportional memory (shared pages once) ${MEMORY}`,
    unit: "MiB",
    most: 16,
  },
  { name: "anonymous-disk", group: "memory", title: `anonymous memory ${MEMORY}`, unit: "MiB", most: 16 },
  systemCalls("ours-nbd", "ours over NBD", 1),
  systemCalls("ours-ring", "ours over a ring"),
  systemCalls("nbdkit-file", "nbdkit file"),
  systemCalls("qemu-raw", "qemu-nbd -f raw"),
  systemCalls("blktap", "the original, around the page cache"),
  ...FLUSH_DEPTHS.map(flushes),
];

/** The probe of a contender's system calls has its name. */
export function systemCallsName(contender: string): string {
  return `system-calls-${contender}`;
}

function systemCalls(contender: string, title: string, most?: number): ProbeKind {
  return {
    name: systemCallsName(contender),
    group: "system-calls",
    title: `system calls for a 4 KiB random read, depth 32: ${title}`,
    unit: "",
    ...(most === undefined ? {} : { most }),
  };
}

/** The probe of the flushes at a depth has its name. */
export function flushesName(depth: number): string {
  return `flushes-d${depth}`;
}

function flushes(depth: number): ProbeKind {
  return {
    name: flushesName(depth),
    group: "flushes",
    title: `fdatasyncs for a 4 KiB write with a flush after each, depth ${depth}: ours over NBD`,
    unit: "",
  };
}
