/** Contenders at work: their services run for as long as a cache mode lasts, or for one run where images are shared or fresh. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Case, PLAIN, VISITS_PER_SECOND } from "./cases.ts";
import { type Load, measure } from "./clients.ts";
import type { ContenderKind } from "./contenders.ts";
import { Disks } from "./disks.ts";
import { clean, emptyImage } from "./images.ts";
import { LARGEST_SPREAD } from "./large-images.ts";
import type { Options } from "./options.ts";
import { cpuSeconds, endedCpuSeconds, residentBytes, run, threadSeconds } from "./processes.ts";
import type { CacheMode, Collections, Measurement, Outcome } from "./results.ts";
import type { Service, Site } from "./services.ts";
import { startVisits } from "./visits.ts";

/** The first runs of a program are not like the later ones: just-in-time compilers, memory that is touched first. */
const WARM_UP_SECONDS = 0.5;
const FILLING_SECONDS = 3;
/** A thread is busy when it has used so much of a CPU by the time that this part of the load is over. */
const BUSY_SHARE = 0.02;
const BUSY_LOOK = 0.7;

/** What makes a program ready: reading, which allocates nothing. */
function warmUp({ image, disks }: Case): Case {
  return {
    ...PLAIN,
    name: "warm-up",
    title: "warm-up",
    pattern: "randread",
    blockBytes: 4096,
    depth: 32,
    image,
    disks,
  };
}

/** What fills a disk before it is trimmed. */
function filling(one: Case): Case {
  return { ...warmUp(one), pattern: "write", blockBytes: 1 << 20 };
}

export class Session {
  readonly #options: Options;
  readonly #folder: string;
  readonly #scratch: string;
  readonly #commands: string;
  readonly #disks: Disks;
  readonly #services = new Map<string, Service>();
  #mode: CacheMode = "buffered";
  #sockets = 0;

  /** `folder` is for images and sockets, `scratch` for fragmented images; this project's programs are in `commands`. */
  constructor(options: Options, folder: string, scratch: string, commands: string) {
    this.#options = options;
    this.#folder = folder;
    this.#scratch = scratch;
    this.#commands = commands;
    this.#disks = new Disks(options.diskBytes, folder, scratch);
  }

  /** Makes the disks of these cases, with equal content for all. */
  prepare(cases: readonly Case[]): Promise<void> {
    return this.#disks.prepare(this.#options.contenders, cases, this.#commands);
  }

  /** Makes a cache mode hold for all runs that follow. */
  async enter(mode: CacheMode): Promise<void> {
    await this.stop();
    this.#mode = mode;
    if (mode === "direct") {
      await this.#disks.cool();
    }
  }

  /** Has the page cache hold what a case reads and writes. */
  async settle(one: Case, kinds: readonly ContenderKind[]): Promise<void> {
    if (this.#mode === "buffered") {
      await this.#disks.warm(one, kinds);
    }
  }

  /** One run of one contender. What goes wrong is part of the outcome. */
  async measure(kind: ContenderKind, one: Case, seed: number): Promise<Outcome> {
    try {
      const load = this.#loadOf(one, this.#options.seconds, seed);
      switch (one.image) {
        case "empty":
          return await this.#measureEmpty(kind, load);
        case "several":
          return await this.#measureOnce(kind, this.#site(kind, one), load, false);
        default:
          return await this.#measureKept(kind, load);
      }
    } catch (error) {
      return { error: error instanceof Error ? error.message : String(error) };
    }
  }

  /** Calls `work` with a contender's service on its disk, and with what makes it busy. */
  async observe<T>(
    kind: ContenderKind,
    one: Case,
    seconds: number,
    work: (service: Service, load: () => Promise<number>) => Promise<T>,
  ): Promise<T> {
    const service = await this.#service(kind, one);
    const load = this.#loadOf(one, seconds, 1);
    return work(service, async () => (await measure(service.endpoints, load, this.#commands)).operations);
  }

  /** Ends all programs. */
  async stop(): Promise<void> {
    const services = [...this.#services.values()];
    this.#services.clear();
    await Promise.all(services.map((service) => service.stop(false)));
  }

  #loadOf(one: Case, seconds: number, seed: number): Load {
    const { diskBytes, alignBytes } = this.#disks.shape(one);
    return { case: one, mode: this.#mode, seconds, diskBytes, alignBytes, seed };
  }

  #site(kind: ContenderKind, one: Case): Site {
    return {
      places: this.#disks.images(kind, one).map((image) => ({
        image,
        socket: join(this.#folder, `${kind.name}.${this.#sockets++}`),
      })),
      content: one.image === "filled" || one.image === "trimmed" ? this.#disks.content : undefined,
      diskBytes: this.#disks.shape(one).diskBytes,
      mode: this.#mode,
      // All share it.
      readOnly: one.image === "largest",
      bitmapSpread: one.image === "largest" ? LARGEST_SPREAD : 1,
      commands: this.#commands,
      blktap: this.#options.blktap,
    };
  }

  /** The running service of a contender on such disks; started again if it is gone. */
  async #service(kind: ContenderKind, one: Case): Promise<Service> {
    const key = `${kind.name} ${one.image}`;
    const running = this.#services.get(key);
    if (running?.alive) {
      return running;
    }
    await running?.stop(true);
    const service = await kind.start(this.#site(kind, one));
    this.#services.set(key, service);
    await this.#warmUp(service, one);
    return service;
  }

  async #measureKept(kind: ContenderKind, load: Load): Promise<Measurement> {
    const service = await this.#service(kind, load.case);
    if (load.case.pattern === "trim") {
      const fill: Load = { ...load, case: filling(load.case), alignBytes: 1 << 20, seconds: FILLING_SECONDS };
      await measure(service.endpoints, fill, this.#commands);
    }
    const measurement = await this.#load(service, load);
    await this.#cleanAfter(kind, load.case);
    return measurement;
  }

  async #measureOnce(kind: ContenderKind, site: Site, load: Load, hard: boolean): Promise<Measurement> {
    const service = await kind.start(site);
    try {
      await this.#warmUp(service, load.case);
      return await this.#load(service, load);
    } finally {
      await service.stop(hard);
      if (!hard) {
        await this.#cleanAfter(kind, load.case);
      }
    }
  }

  async #measureEmpty(kind: ContenderKind, load: Load): Promise<Measurement> {
    const images = this.#disks.images(kind, load.case);
    try {
      for (const image of images) {
        await emptyImage(image, kind.format === "vhd" ? "vhd" : "raw", load.diskBytes);
      }
      return await this.#measureOnce(kind, this.#site(kind, load.case), load, true);
    } finally {
      await Promise.all(images.map((image) => rm(image, { force: true })));
      // What the journal still has to do must not fall into another's time.
      await run({ program: "sync", args: ["--file-system", this.#scratch] });
    }
  }

  async #cleanAfter(kind: ContenderKind, one: Case): Promise<void> {
    if (!one.pattern.endsWith("read") && kind.format !== "none") {
      await Promise.all(this.#disks.images(kind, one).map(clean));
    }
  }

  async #warmUp(service: Service, one: Case): Promise<void> {
    await measure(service.endpoints, this.#loadOf(warmUp(one), WARM_UP_SECONDS, 0), this.#commands);
  }

  async #load(service: Service, load: Load): Promise<Measurement> {
    const { pids } = service;
    const sum = (figure: (pid: number) => number) => pids.reduce((all, pid) => all + figure(pid), 0);
    // Not what fio says of itself: it leaves out the kernel's threads that work for it.
    const used = pids.length === 0 ? endedCpuSeconds : () => sum(cpuSeconds);
    const visits =
      load.case.visited && service.door !== undefined ? startVisits(service.door, VISITS_PER_SECOND) : undefined;
    const [before, collected] = [used(), service.collections()?.length];
    const [report, busyThreads] = await Promise.all([
      measure(service.endpoints, load, this.#commands),
      busyThreadsMeanwhile(pids, load.seconds),
    ]);
    const cpu = used() - before;
    await visits?.end();
    const perSecond = report.operations / report.seconds;
    return {
      operations: report.operations,
      perSecond,
      megabytesPerSecond: (perSecond * load.case.blockBytes) / 1e6,
      latency: report.latency,
      cpuMicroseconds: (cpu * 1e6) / report.operations,
      residentBytes: pids.length === 0 ? Number.NaN : sum(residentBytes),
      busyThreads: pids.length === 0 ? undefined : busyThreads,
      collections: collected === undefined ? undefined : collectionsSince(service, collected),
    };
  }
}

/**
 * How many threads of these processes are at work for most of a load of so many seconds. It looks while they are: some live
 * as long as a connection.
 */
async function busyThreadsMeanwhile(pids: readonly number[], seconds: number): Promise<number> {
  const before = pids.map(threadSeconds);
  await sleep(BUSY_LOOK * 1000 * seconds);
  return pids.reduce((count, pid, index) => {
    const busy = [...threadSeconds(pid)].filter(
      ([thread, used]) => used - (before[index]?.get(thread) ?? 0) > BUSY_SHARE * BUSY_LOOK * seconds,
    );
    return count + busy.length;
  }, 0);
}

function collectionsSince(service: Service, earlier: number): Collections {
  const since = service.collections()?.slice(earlier) ?? [];
  return { count: since.length, longest: Math.max(0, ...since.map(({ milliseconds }) => milliseconds)) };
}
