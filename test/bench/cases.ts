/** What is measured. */

import type { CacheMode } from "./results.ts";

/** What fio and ring-client call it. */
export type Pattern = "randread" | "randwrite" | "read" | "write" | "trim";

export interface Case {
  readonly name: string;
  readonly title: string;
  readonly pattern: Pattern;
  readonly blockBytes: number;
  readonly depth: number;
  /** Each run begins with an empty image. */
  readonly fresh: boolean;
  /** A flush follows every write. */
  readonly flushEach: boolean;
  /** In which modes it says something. */
  readonly modes: readonly CacheMode[];
  /** It runs when no cases are named: a bar needs it, or it is what people look for first. */
  readonly core: boolean;
}

const KIB = 1 << 10;
const MIB = 1 << 20;
const BOTH: readonly CacheMode[] = ["buffered", "direct"];
const PLAIN = { fresh: false, flushEach: false, modes: BOTH, core: false } as const;

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

const randomCases = [4 * KIB, 64 * KIB].flatMap((bytes) =>
  (["randread", "randwrite"] as const).flatMap((pattern) =>
    [1, 8, 32, 128].map((depth) => random(pattern, bytes, depth)),
  ),
);

export const allCases: readonly Case[] = [
  ...randomCases,
  sequential("read"),
  sequential("write"),
  {
    ...PLAIN,
    name: "firstwrite-4k-d32",
    title: "4 KiB random first write (allocates), depth 32",
    pattern: "randwrite",
    blockBytes: 4 * KIB,
    depth: 32,
    fresh: true,
    core: true,
  },
  {
    ...PLAIN,
    name: "firstwrite-1m-d4",
    title: "1 MiB sequential first write (allocates), depth 4",
    pattern: "write",
    blockBytes: MIB,
    depth: 4,
    fresh: true,
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
    modes: ["buffered"],
  },
];
