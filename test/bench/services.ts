/** Servers that are ready: what they offer, and how they are started and ended. */

import { once } from "node:events";
import { access } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Endpoint } from "./clients.ts";
import { type Collection, collectionsOfDisks } from "./collections.ts";
import { type Command, Program, run } from "./processes.ts";
import type { CacheMode } from "./results.ts";

/** Where one disk of a contender is. */
export interface Place {
  /** Its image, in the format that the contender wants. */
  readonly image: string;
  /** A path for its socket. */
  readonly socket: string;
}

/** What a contender is started with. */
export interface Site {
  /** A place for each disk. */
  readonly places: readonly Place[];
  /** Content for those that have no image file; nothing when they start empty. */
  readonly content: string | undefined;
  readonly diskBytes: number;
  readonly mode: CacheMode;
  readonly readOnly: boolean;
  /** How many of a full disk's bitmaps the images have: one in so many. */
  readonly bitmapSpread: number;
  /** The folder of this project's commands. */
  readonly commands: string;
  readonly blktap: string | undefined;
}

/** A contender that is ready. */
export interface Service {
  /** One for each disk. */
  readonly endpoints: readonly Endpoint[];
  /** The processes that serve; none where the client does it all by itself. */
  readonly pids: readonly number[];
  readonly alive: boolean;
  /** An NBD socket at which other clients can come and go. */
  readonly door: string | undefined;
  /** What V8 has collected so far in the threads that serve disks; nothing where there is no V8. */
  collections(): readonly Collection[] | undefined;
  /** Ends it; `hard` when its images are thrown away anyhow. */
  stop(hard: boolean): Promise<void>;
}

const READY_MS = 15_000;
const POLL_MS = 5;
const BITMAP_CACHE_MIB = 64;

/** One process for each disk, all started at once. Each serves NBD as soon as its socket accepts. */
export function startNbd(site: Site, command: (place: Place) => Command, content?: string): Promise<Service> {
  return eachDisk(site, async (place) => {
    const server = new Program(command(place));
    await until(server, () => accepts(place.socket));
    if (content !== undefined) {
      await run({ program: "nbdcopy", args: [content, `nbd+unix:///?socket=${place.socket}`] });
    }
    return service([server], [{ kind: "nbd", socket: place.socket }], place.socket);
  });
}

/** A service of its own for each disk, as one. */
export async function eachDisk(site: Site, start: (place: Place) => Promise<Service>): Promise<Service> {
  const starting = await Promise.allSettled(site.places.map(start));
  const services = starting.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const stop = async (hard: boolean) => {
    await Promise.all(services.map((one) => one.stop(hard)));
  };
  const failed = starting.find((one) => one.status === "rejected");
  if (failed !== undefined) {
    await stop(true);
    throw failed.reason;
  }
  return {
    endpoints: services.flatMap(({ endpoints }) => endpoints),
    pids: services.flatMap(({ pids }) => pids),
    get alive() {
      return services.every(({ alive }) => alive);
    },
    door: services[0]?.door,
    collections: () => services[0]?.collections(),
    stop,
  };
}

/** Ours: one process for all disks, that tells of its garbage collections. */
export async function startTapdisk(site: Site, kind: "nbd" | "ring"): Promise<Service> {
  const door = (place: Place) => (kind === "nbd" ? place.socket : `${place.socket}.nbd`);
  const server = new Program({
    program: process.execPath,
    args: [
      "--trace-gc",
      join(site.commands, "../lib/tapdisk.cjs"),
      "serve",
      ...site.places.map(({ image }) => `vhd:${image}`),
      ...site.places.flatMap((place) => ["--nbd", `unix:${door(place)}`]),
      ...(kind === "ring" ? site.places.flatMap(({ socket }) => ["--ring", `unix:${socket}`]) : []),
      ...(site.mode === "direct" ? ["--direct"] : []),
      ...(site.readOnly ? ["--read-only"] : []),
      ...(site.bitmapSpread === 1 ? [] : ["--bitmap-cache", `${BITMAP_CACHE_MIB / site.bitmapSpread}`]),
    ],
  });
  // It prints where it serves when it is ready.
  await until(server, async () => /^(nbd|ring)\+unix:/m.test(server.stdout));
  const endpoints = site.places.map(({ socket }): Endpoint => ({ kind, socket }));
  const [first] = site.places;
  return service([server], endpoints, first && door(first), () => collectionsOfDisks(server.stdout));
}

function service(
  servers: readonly Program[],
  endpoints: readonly Endpoint[],
  door: string | undefined,
  collections: Service["collections"] = () => undefined,
): Service {
  return {
    endpoints,
    pids: servers.flatMap(({ pid }) => (pid === undefined ? [] : [pid])),
    get alive() {
      return servers.every(({ alive }) => alive);
    },
    door,
    collections,
    stop: async (hard) => {
      await Promise.all(servers.map((server) => server.stop(hard ? "SIGKILL" : "SIGTERM")));
    },
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
