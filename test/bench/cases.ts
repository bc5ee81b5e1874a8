/** What is measured. */

import type { CacheMode } from "./results.ts";

/** What all clients call it. */
export type Pattern = "randread" | "randwrite" | "read" | "write" | "trim";

/**
 * On what: a disk with content, another one whose content goes, one in which nothing is allocated and which is thrown away,
 * several small ones, or one of 2040 GiB whose bitmaps don't fit into memory.
 */
export type ImageKind = "filled" | "trimmed" | "empty" | "several" | "largest";

export interface Case {
  readonly name: string;
  readonly title: string;
  readonly pattern: Pattern;
  readonly blockBytes: number;
  /** Of each disk. */
  readonly depth: number;
  readonly image: ImageKind;
  /** How many disks are under this load at once. */
  readonly disks: number;
  /** Who puts the load on NBD disks: nbd-load, or fio, whose client takes more CPU time than most servers. */
  readonly client: "lean" | "fio";
  /** A flush follows every write. */
  readonly flushEach: boolean;
  /** Other clients come and go meanwhile. */
  readonly visited: boolean;
  /** In which modes it says something. */
  readonly modes: readonly CacheMode[];
  /** It runs when no cases are named: a bar needs it, or it is what people look for first. */
  readonly core: boolean;
}

const KIB = 1 << 10;
const MIB = 1 << 20;
const BOTH: readonly CacheMode[] = ["buffered", "direct"];

export const PLAIN = {
  image: "filled",
  disks: 1,
  client: "lean",
  flushEach: false,
  visited: false,
  modes: BOTH,
  core: false,
} as const;

/** How many disks there are at once in the cases that compare this. */
export const DISKS = [1, 4, 16] as const;

function sizeTitle(bytes: number): string {
  return bytes < MIB ? `${bytes / KIB} KiB` : `${bytes / MIB} MiB`;
}

function random(pattern: "randread" | "randwrite", blockBytes: number, depth: number): Case {
  const what = pattern === "randread" ? "read" : "overwrite";
  return {
    ...PLAIN,
    name: `${pattern}-${blockBytes / KIB}k-d${depth}`,
    title: `${sizeTitle(blockBytes)} random ${what}, depth ${depth}`,
    pattern,
    blockBytes,
    depth,
    core: blockBytes === 4 * KIB && (depth === 1 || depth === 32),
  };
}

function sequential(pattern: "read" | "write"): Case {
  const depth = 4;
  return {
    ...PLAIN,
    name: `${pattern}-1m-d${depth}`,
    title: `1 MiB sequential ${pattern}, depth ${depth}`,
    pattern,
    blockBytes: MIB,
    depth,
    modes: ["buffered"],
    core: true,
  };
}

function flushedWrites(depth: number): Case {
  return {
    ...PLAIN,
    name: `flushedwrite-4k-d${depth}`,
    title: `4 KiB random overwrite, a flush after each, depth ${depth}`,
    pattern: "randwrite",
    blockBytes: 4 * KIB,
    depth,
    flushEach: true,
    modes: ["buffered"],
  };
}

/** The case with so many disks at once; reports look them up by this name. */
export function severalName(pattern: "randread" | "randwrite", disks: number): string {
  return `${pattern}-4k-d32-disks${disks}`;
}

function several(pattern: "randread" | "randwrite", disks: number): Case {
  const one = random(pattern, 4 * KIB, 32);
  return {
    ...one,
    name: severalName(pattern, disks),
    title: `${one.title}, ${disks} ${disks === 1 ? "small disk" : "disks at once"}`,
    image: "several",
    disks,
  };
}

const randomCases = [4 * KIB, 64 * KIB].flatMap((bytes) =>
  (["randread", "randwrite"] as const).flatMap((pattern) =>
    [1, 8, 32, 128].map((depth) => random(pattern, bytes, depth)),
  ),
);

/** The same with the client that people know. */
function byFio(one: Case): Case {
  return {
    ...one,
    name: `${one.name}-fio`,
    title: `${one.title}, by fio's NBD client`,
    client: "fio",
    modes: ["buffered"],
  };
}

/** How many clients come and go in a second where a case wants that. */
export const VISITS_PER_SECOND = 200;

/** What is read while other clients come and go, and what it is like when they don't. */
export const VISITED = { quiet: "randread-4k-d32", visited: "randread-4k-d32-visited" } as const;

export const allCases: readonly Case[] = [
  ...randomCases,
  ...randomCases.filter(({ core }) => core).map(byFio),
  sequential("read"),
  sequential("write"),
  {
    ...PLAIN,
    name: "firstwrite-4k-d32",
    title: "4 KiB random first write (allocates), depth 32",
    pattern: "randwrite",
    blockBytes: 4 * KIB,
    depth: 32,
    image: "empty",
    core: true,
  },
  {
    ...PLAIN,
    name: "firstwrite-1m-d4",
    title: "1 MiB sequential first write (allocates), depth 4",
    pattern: "write",
    blockBytes: MIB,
    depth: 4,
    image: "empty",
  },
  flushedWrites(1),
  flushedWrites(32),
  {
    ...PLAIN,
    name: "trim-1m-d4",
    title: "trim of everything, 1 MiB at a time, depth 4",
    pattern: "trim",
    blockBytes: MIB,
    depth: 4,
    image: "trimmed",
    modes: ["buffered"],
  },
  ...DISKS.flatMap((disks) => [several("randread", disks), several("randwrite", disks)]),
  {
    ...random("randread", 4 * KIB, 32),
    name: "randread-4k-d32-largest",
    title: "4 KiB random read all over 2040 GiB, depth 32",
    image: "largest",
  },
  {
    ...random("randread", 4 * KIB, 32),
    name: VISITED.visited,
    title: "4 KiB random read, depth 32, while clients come and go",
    visited: true,
    modes: ["buffered"],
  },
];
