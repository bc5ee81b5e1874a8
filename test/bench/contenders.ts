/** Who is compared: how each is started on disks. */

import { startBlktap } from "./blktap.ts";
import type { Case, ImageKind } from "./cases.ts";
import type { Command } from "./processes.ts";
import type { CacheMode } from "./results.ts";
import { eachDisk, type Place, type Service, type Site, startNbd, startTapdisk } from "./services.ts";

export interface ContenderKind {
  readonly name: string;
  readonly title: string;
  readonly format: "raw" | "vhd" | "none";
  readonly modes: readonly CacheMode[];
  /** What it can serve. */
  readonly images: readonly ImageKind[];
  readonly needsBlktap: boolean;
  /** Images in the chain, whose fragments lie in turn in each. One: the same program wrote it, a fragment at a time. */
  readonly chain?: number;
  start(site: Site): Promise<Service>;
}

const BOTH: readonly CacheMode[] = ["buffered", "direct"];

export const contenderKinds: readonly ContenderKind[] = [
  {
    name: "raw",
    title: "raw file (fio, io_uring)",
    format: "raw",
    modes: BOTH,
    images: ["filled", "empty", "several"],
    needsBlktap: false,
    start: async ({ places }) => ({
      endpoints: places.map(({ image }) => ({ kind: "file", path: image })),
      pids: [],
      alive: true,
      door: undefined,
      collections: () => undefined,
      stop: async () => {},
    }),
  },
  {
    name: "nbdkit-memory",
    title: "nbdkit memory",
    format: "none",
    modes: ["buffered"],
    images: ["filled", "trimmed"],
    needsBlktap: false,
    start: (site) => startNbd(site, (place) => nbdkit(place, ["memory", `size=${site.diskBytes}`]), site.content),
  },
  {
    name: "nbdkit-null",
    title: "nbdkit null",
    format: "none",
    modes: ["buffered"],
    images: ["filled"],
    needsBlktap: false,
    start: (site) => startNbd(site, (place) => nbdkit(place, ["null", `size=${site.diskBytes}`])),
  },
  {
    name: "nbdkit-file",
    title: "nbdkit file",
    format: "raw",
    // It has no O_DIRECT.
    modes: ["buffered"],
    images: ["filled", "trimmed", "empty", "several"],
    needsBlktap: false,
    start: (site) => startNbd(site, (place) => nbdkit(place, ["file", place.image])),
  },
  {
    name: "qemu-raw",
    title: "qemu-nbd -f raw",
    format: "raw",
    modes: BOTH,
    images: ["filled", "trimmed", "several"],
    needsBlktap: false,
    start: (site) => startNbd(site, (place) => qemuNbd(site, place, "raw")),
  },
  {
    name: "qemu-vpc",
    title: "qemu-nbd -f vpc",
    format: "vhd",
    modes: BOTH,
    images: ["filled", "trimmed", "empty", "largest"],
    needsBlktap: false,
    start: (site) => startNbd(site, (place) => qemuNbd(site, place, "vpc")),
  },
  {
    name: "blktap",
    title: "original tapdisk (NBD)",
    format: "vhd",
    // It always goes around the page cache.
    modes: ["direct"],
    images: ["filled", "empty", "largest"],
    needsBlktap: true,
    start: (site) => eachDisk(site, ({ image }) => startBlktap(image, site.readOnly, site.blktap ?? "")),
  },
  {
    name: "ours-nbd",
    title: "ours, NBD",
    format: "vhd",
    modes: BOTH,
    images: ["filled", "trimmed", "empty", "several", "largest"],
    needsBlktap: false,
    start: (site) => startTapdisk(site, "nbd"),
  },
  {
    name: "ours-ring",
    title: "ours, ring",
    format: "vhd",
    modes: BOTH,
    images: ["filled", "empty", "several", "largest"],
    needsBlktap: false,
    start: (site) => startTapdisk(site, "ring"),
  },
  ...[1, 2, 8, 30].map(
    (chain): ContenderKind => ({
      name: `ours-chain-${chain}`,
      title: chain === 1 ? "ours, ring, one image" : `ours, ring, chain of ${chain}`,
      format: "vhd",
      modes: BOTH,
      images: ["filled"],
      needsBlktap: false,
      chain,
      start: (site) => startTapdisk(site, "ring"),
    }),
  ),
];

/** Whether a contender can do what a case wants. */
export function takesPart(kind: ContenderKind, one: Case, mode: CacheMode): boolean {
  if (!kind.modes.includes(mode) || !one.modes.includes(mode) || !kind.images.includes(one.image)) {
    return false;
  }
  const ring = kind.name === "ours-ring" || kind.chain !== undefined;
  if (one.client === "fio" && (ring || kind.name === "raw")) {
    return false;
  }
  if (kind.chain !== undefined && (one.pattern !== "randread" || one.blockBytes !== 4096 || one.visited)) {
    return false;
  }
  if (one.flushEach) {
    return !ring && kind.name !== "blktap";
  }
  if (one.visited) {
    return kind.name !== "raw";
  }
  // Its client brings one ring, which has 32 entries.
  return !(ring && one.depth > 32);
}

function nbdkit({ socket }: Place, plugin: readonly string[]): Command {
  return { program: "nbdkit", args: ["--foreground", "--exit-with-parent", "--unix", socket, ...plugin] };
}

function qemuNbd({ mode, readOnly }: Site, { image, socket }: Place, format: "raw" | "vpc"): Command {
  // What qemu does by itself in the page cache; its best asynchronous I/O around it.
  const cache = mode === "direct" ? ["--cache=none", "--aio=native"] : ["--cache=writeback"];
  const access = readOnly ? ["--read-only"] : [];
  return {
    program: "qemu-nbd",
    args: ["--persistent", "--shared=16", "--socket", socket, ...access, ...cache, "-f", format, image],
  };
}
