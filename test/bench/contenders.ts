/** Who is compared: how each is started on a disk. */

import { once } from "node:events";
import { access } from "node:fs/promises";
import { connect } from "node:net";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startBlktap } from "./blktap.ts";
import type { Case } from "./cases.ts";
import type { Endpoint } from "./clients.ts";
import { type Command, Program, run } from "./processes.ts";
import type { CacheMode } from "./results.ts";

/** What a contender is started with. */
export interface Site {
  /** Its own image, in the format that it wants. */
  readonly image: string;
  /** Content for those that have no image file; nothing when they start empty. */
  readonly content: string | undefined;
  readonly diskBytes: number;
  /** A path for its socket. */
  readonly socket: string;
  readonly mode: CacheMode;
  /** The folder of this project's commands. */
  readonly commands: string;
  readonly blktap: string | undefined;
}

/** A contender that is ready. */
export interface Service {
  readonly endpoint: Endpoint;
  /** The process that serves; none where the client does it all by itself. */
  readonly pid: number | undefined;
  readonly alive: boolean;
  /** Ends it; `hard` when its image is thrown away anyhow. */
  stop(hard: boolean): Promise<void>;
}

export interface ContenderKind {
  readonly name: string;
  readonly title: string;
  readonly format: "raw" | "vhd" | "none";
  readonly modes: readonly CacheMode[];
  /** Whether it takes part in cases that begin with an empty image. */
  readonly fresh: boolean;
  readonly needsBlktap: boolean;
  /** Images in the chain, if it is more than one. */
  readonly chain?: number;
  start(site: Site): Promise<Service>;
}

const READY_MS = 15_000;
const POLL_MS = 5;
const BOTH: readonly CacheMode[] = ["buffered", "direct"];

export const contenderKinds: readonly ContenderKind[] = [
  {
    name: "raw",
    title: "raw file (fio, io_uring)",
    format: "raw",
    modes: BOTH,
    fresh: true,
    needsBlktap: false,
    start: async ({ image }) => ({
      endpoint: { kind: "file", path: image },
      pid: undefined,
      alive: true,
      stop: async () => {},
    }),
  },
  {
    name: "nbdkit-memory",
    title: "nbdkit memory",
    format: "none",
    modes: ["buffered"],
    fresh: false,
    needsBlktap: false,
    start: async (site) => {
      const service = await startNbd(site, nbdkit(site, ["memory", `size=${site.diskBytes}`]));
      if (site.content !== undefined) {
        await run({ program: "nbdcopy", args: [site.content, `nbd+unix:///?socket=${site.socket}`] });
      }
      return service;
    },
  },
  {
    name: "nbdkit-null",
    title: "nbdkit null",
    format: "none",
    modes: ["buffered"],
    fresh: false,
    needsBlktap: false,
    start: (site) => startNbd(site, nbdkit(site, ["null", `size=${site.diskBytes}`])),
  },
  {
    name: "nbdkit-file",
    title: "nbdkit file",
    format: "raw",
    // It has no O_DIRECT.
    modes: ["buffered"],
    fresh: true,
    needsBlktap: false,
    start: (site) => startNbd(site, nbdkit(site, ["file", site.image])),
  },
  {
    name: "qemu-raw",
    title: "qemu-nbd -f raw",
    format: "raw",
    modes: BOTH,
    fresh: false,
    needsBlktap: false,
    start: (site) => startNbd(site, qemuNbd(site, "raw")),
  },
  {
    name: "qemu-vpc",
    title: "qemu-nbd -f vpc",
    format: "vhd",
    modes: BOTH,
    fresh: true,
    needsBlktap: false,
    start: (site) => startNbd(site, qemuNbd(site, "vpc")),
  },
  {
    name: "blktap",
    title: "original tapdisk (NBD)",
    format: "vhd",
    // It always goes around the page cache.
    modes: ["direct"],
    fresh: true,
    needsBlktap: true,
    start: ({ image, blktap }) => startBlktap(image, blktap ?? ""),
  },
  {
    name: "ours-nbd",
    title: "ours, NBD",
    format: "vhd",
    modes: BOTH,
    fresh: true,
    needsBlktap: false,
    start: (site) => startTapdisk(site, "nbd"),
  },
  {
    name: "ours-ring",
    title: "ours, ring",
    format: "vhd",
    modes: BOTH,
    fresh: true,
    needsBlktap: false,
    start: (site) => startTapdisk(site, "ring"),
  },
  ...[2, 8, 30].map(
    (chain): ContenderKind => ({
      name: `ours-chain-${chain}`,
      title: `ours, ring, chain of ${chain}`,
      format: "vhd",
      modes: ["buffered"],
      fresh: false,
      needsBlktap: false,
      chain,
      start: (site) => startTapdisk(site, "ring"),
    }),
  ),
];

/** Whether a contender can do what a case wants. */
export function takesPart(kind: ContenderKind, one: Case, mode: CacheMode): boolean {
  if (!kind.modes.includes(mode) || !one.modes.includes(mode) || (one.fresh && !kind.fresh)) {
    return false;
  }
  if (kind.chain !== undefined) {
    return one.pattern === "randread" && one.blockBytes === 4096;
  }
  const ring = kind.name === "ours-ring";
  if (one.pattern === "trim") {
    // fio trims block devices and NBD disks, not files; the original doesn't take it.
    return !ring && !["raw", "blktap", "nbdkit-null"].includes(kind.name);
  }
  if (one.flushEach) {
    return !ring && kind.name !== "blktap";
  }
  // Its client brings one ring, which has 32 entries.
  return !(ring && one.depth > 32);
}

function nbdkit({ socket }: Site, plugin: readonly string[]): Command {
  return { program: "nbdkit", args: ["--foreground", "--exit-with-parent", "--unix", socket, ...plugin] };
}

function qemuNbd({ socket, mode, image }: Site, format: "raw" | "vpc"): Command {
  // What qemu does by itself in the page cache; its best asynchronous I/O around it.
  const cache = mode === "direct" ? ["--cache=none", "--aio=native"] : ["--cache=writeback"];
  return {
    program: "qemu-nbd",
    args: ["--persistent", "--shared=16", "--socket", socket, ...cache, "-f", format, image],
  };
}

async function startNbd(site: Site, command: Command): Promise<Service> {
  const server = new Program(command);
  await until(server, () => accepts(site.socket));
  return service(server, { kind: "nbd", socket: site.socket });
}

async function startTapdisk(site: Site, kind: "nbd" | "ring"): Promise<Service> {
  const direct = site.mode === "direct" ? ["--direct"] : [];
  const server = new Program({
    program: join(site.commands, "tapdisk"),
    args: ["serve", `vhd:${site.image}`, `--${kind}`, `unix:${site.socket}`, ...direct],
  });
  // It prints where it serves when it is ready.
  await until(server, async () => server.stdout.includes("\n"));
  return service(server, { kind, socket: site.socket });
}

function service(server: Program, endpoint: Endpoint): Service {
  return {
    endpoint,
    pid: server.pid,
    get alive() {
      return server.alive;
    },
    stop: (hard) => server.stop(hard ? "SIGKILL" : "SIGTERM"),
  };
}

async function until(server: Program, ready: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + READY_MS;
  while (!(await ready())) {
    if (!server.alive) {
      throw server.error("did not start");
    }
    if (performance.now() > deadline) {
      const error = server.error("did not get ready in time");
      await server.stop("SIGKILL");
      throw error;
    }
    await sleep(POLL_MS);
  }
}

async function accepts(path: string): Promise<boolean> {
  try {
    await access(path);
    const socket = connect(path);
    await once(socket, "connect");
    socket.destroy();
    return true;
  } catch {
    return false;
  }
}

/** The file name of a contender's image. */
export function imageName({ name, format }: ContenderKind): string {
  return basename(`${name}.${format === "vhd" ? "vhd" : "raw"}`);
}
