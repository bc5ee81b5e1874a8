/** Contenders at work: one process each for as long as a cache mode lasts, or one for each run where images are fresh. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Case } from "./cases.ts";
import { chainFiles, makeChain } from "./chains.ts";
import { type Endpoint, type Load, measure } from "./clients.ts";
import { type ContenderKind, imageName, type Service, type Site } from "./contenders.ts";
import { clean, cool, copyFile, diskBytes, emptyImage, FRESH_BYTES, makeVhd, warm, writeContent } from "./images.ts";
import type { Options } from "./options.ts";
import { cpuSeconds, endedCpuSeconds, residentBytes, run } from "./processes.ts";
import type { CacheMode, Measurement, Outcome } from "./results.ts";

/** The first runs of a program are not like the later ones: just-in-time compilers, memory that is touched first. */
const WARM_UP_SECONDS = 0.5;
const FILLING_SECONDS = 3;

const WARM_UP: Case = {
  name: "warm-up",
  title: "warm-up",
  pattern: "randread",
  blockBytes: 4096,
  depth: 32,
  fresh: false,
  flushEach: false,
  modes: ["buffered", "direct"],
  core: false,
};

/** What fills a disk before it is trimmed. */
const FILLING: Case = { ...WARM_UP, name: "filling", title: "filling", pattern: "write", blockBytes: 1 << 20 };

export class Session {
  readonly #options: Options;
  readonly #folder: string;
  readonly #scratch: string;
  readonly #commands: string;
  readonly #services = new Map<ContenderKind, Service>();
  #mode: CacheMode = "buffered";
  #sockets = 0;

  /** `folder` is for images and sockets, `scratch` for images of one run; this project's programs are in `commands`. */
  constructor(options: Options, folder: string, scratch: string, commands: string) {
    this.#options = options;
    this.#folder = folder;
    this.#scratch = scratch;
    this.#commands = commands;
  }

  /** Makes the disks, with equal content. */
  async prepare(): Promise<void> {
    await writeContent(this.#content, this.#options.diskBytes);
    const vhd = join(this.#folder, "content.vhd");
    if (this.#options.contenders.some(({ format }) => format === "vhd")) {
      await makeVhd(this.#content, vhd, this.#options.diskBytes, this.#commands);
    }
    for (const kind of this.#options.contenders) {
      if (kind.chain !== undefined) {
        await makeChain(this.#content, this.#image(kind), kind.chain, this.#options.diskBytes);
      } else if (kind.format !== "none") {
        await copyFile(kind.format === "vhd" ? vhd : this.#content, this.#image(kind));
      }
      if (kind.format !== "none") {
        await clean(this.#image(kind));
      }
    }
    await rm(vhd, { force: true });
  }

  /** Makes a cache mode hold for all runs that follow. */
  async enter(mode: CacheMode): Promise<void> {
    await this.stop();
    this.#mode = mode;
    for (const kind of this.#options.contenders) {
      if (kind.format !== "none" && mode === "direct") {
        await cool(this.#image(kind));
      }
    }
  }

  /** Has the page cache hold what a case reads and writes. */
  async settle(one: Case, kinds: readonly ContenderKind[]): Promise<void> {
    if (this.#mode === "buffered" && !one.fresh) {
      for (const kind of kinds) {
        if (kind.format !== "none") {
          await Promise.all(chainFiles(this.#image(kind), kind.chain).map(warm));
        }
      }
    }
  }

  /** One run of one contender. What goes wrong is part of the outcome. */
  async measure(kind: ContenderKind, one: Case, seed: number): Promise<Outcome> {
    try {
      const load: Load = {
        case: one,
        mode: this.#mode,
        seconds: this.#options.seconds,
        diskBytes: diskBytes(one, this.#options.diskBytes),
        seed,
      };
      if (one.fresh) {
        return await this.#measureFresh(kind, load);
      }
      const service = await this.#service(kind);
      if (one.pattern === "trim") {
        await measure(service.endpoint, { ...load, case: FILLING, seconds: FILLING_SECONDS }, this.#ringClient);
      }
      const measurement = await this.#load(service, load);
      if (!one.pattern.endsWith("read") && kind.format !== "none") {
        await clean(this.#image(kind));
      }
      return measurement;
    } catch (error) {
      return { error: error instanceof Error ? error.message : String(error) };
    }
  }

  /** Ends all programs. */
  async stop(): Promise<void> {
    const services = [...this.#services.values()];
    this.#services.clear();
    await Promise.all(services.map((service) => service.stop(false)));
  }

  get #ringClient(): string {
    return join(this.#commands, "ring-client");
  }

  get #content(): string {
    return join(this.#folder, "content");
  }

  #image(kind: ContenderKind): string {
    return join(this.#folder, imageName(kind));
  }

  #site(kind: ContenderKind, image: string, fresh: boolean): Site {
    return {
      image,
      content: fresh ? undefined : this.#content,
      diskBytes: this.#options.diskBytes,
      socket: join(this.#folder, `${kind.name}.${this.#sockets++}`),
      mode: this.#mode,
      commands: this.#commands,
      blktap: this.#options.blktap,
    };
  }

  /** The running program of a contender; started again if it is gone. */
  async #service(kind: ContenderKind): Promise<Service> {
    const running = this.#services.get(kind);
    if (running?.alive) {
      return running;
    }
    await running?.stop(true);
    const service = await kind.start(this.#site(kind, this.#image(kind), false));
    this.#services.set(kind, service);
    await this.#warmUp(service.endpoint, this.#options.diskBytes);
    return service;
  }

  async #measureFresh(kind: ContenderKind, load: Load): Promise<Measurement> {
    const image = join(this.#scratch, imageName(kind));
    try {
      await emptyImage(image, kind.format === "vhd" ? "vhd" : "raw", FRESH_BYTES);
      const service = await kind.start(this.#site(kind, image, true));
      try {
        // Reading allocates nothing.
        await this.#warmUp(service.endpoint, load.diskBytes);
        return await this.#load(service, load);
      } finally {
        await service.stop(true);
      }
    } finally {
      await rm(image, { force: true });
      // What the journal still has to do must not fall into another's time.
      await run({ program: "sync", args: ["--file-system", this.#scratch] });
    }
  }

  async #warmUp(endpoint: Endpoint, bytes: number): Promise<void> {
    const load: Load = { case: WARM_UP, mode: this.#mode, seconds: WARM_UP_SECONDS, diskBytes: bytes, seed: 0 };
    await measure(endpoint, load, this.#ringClient);
  }

  async #load(service: Service, load: Load): Promise<Measurement> {
    const { pid } = service;
    // Not what fio says of itself: it leaves out the kernel's threads that work for it.
    const used = pid === undefined ? endedCpuSeconds : () => cpuSeconds(pid);
    const before = used();
    const report = await measure(service.endpoint, load, this.#ringClient);
    const cpu = used() - before;
    const perSecond = report.operations / report.seconds;
    return {
      operations: report.operations,
      perSecond,
      megabytesPerSecond: (perSecond * load.case.blockBytes) / 1e6,
      latency: report.latency,
      cpuMicroseconds: (cpu * 1e6) / report.operations,
      residentBytes: pid === undefined ? Number.NaN : residentBytes(pid),
    };
  }
}
