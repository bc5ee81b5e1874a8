/** What is measured. */

/** What fio and ring-client call it. */
export type Pattern = "randread" | "randwrite" | "read" | "write";

export interface Case {
  readonly name: string;
  readonly title: string;
  readonly pattern: Pattern;
  readonly blockBytes: number;
  readonly depth: number;
  /** Each run begins with an empty image. */
  readonly fresh: boolean;
}

const KIB = 1 << 10;
const MIB = 1 << 20;

function random(pattern: "randread" | "randwrite", depth: number): Case {
  const what = pattern === "randread" ? "read" : "overwrite";
  return {
    name: `${pattern}-4k-d${depth}`,
    title: `4 KiB random ${what}, depth ${depth}`,
    pattern,
    blockBytes: 4 * KIB,
    depth,
    fresh: false,
  };
}

function sequential(pattern: "read" | "write"): Case {
  const depth = 4;
  return {
    name: `${pattern}-1m-d${depth}`,
    title: `1 MiB sequential ${pattern}, depth ${depth}`,
    pattern,
    blockBytes: MIB,
    depth,
    fresh: false,
  };
}

function firstWrites(depth: number): Case {
  return {
    name: `firstwrite-4k-d${depth}`,
    title: `4 KiB random first write (allocates), depth ${depth}`,
    pattern: "randwrite",
    blockBytes: 4 * KIB,
    depth,
    fresh: true,
  };
}

export const allCases: readonly Case[] = [
  random("randread", 1),
  random("randread", 32),
  random("randwrite", 1),
  random("randwrite", 32),
  sequential("read"),
  sequential("write"),
  firstWrites(32),
];
