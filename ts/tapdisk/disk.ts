// The global of this name is a getter, which costs the loop more than the clock does.
import { performance } from "node:perf_hooks";
import { Engine, type EngineModule, JobError, type OpenedDisk } from "../engine/engine.ts";
import { HostFiles } from "../host/files.ts";
import { DataPlane } from "./data-plane.ts";
import { errnoOf, messageOf } from "./errors.ts";
import type { Control, DiskOptions, Report } from "./messages.ts";
import type { Port, PortModule } from "./port.ts";
import { Vbd } from "./vbd.ts";

const SECTOR = 512;
/** How long clients get to take their last answers when the disk is closed. */
const DRAIN_MS = 10_000;
/** How often closing is tried, and the time between two attempts. */
const CLOSE_ATTEMPTS = 5;
const CLOSE_INTERVAL_MS = 1_000;
/** Between two looks at the clock while draining. */
const DRAIN_STEP_MS = 100;

function now(): number {
  return performance.now();
}

/** One virtual disk from opening to closing: its files, its engine, its vbd and its front ends, driven by one thread. */
export class Disk {
  readonly #options: DiskOptions;
  readonly #report: (message: Report) => void;
  readonly #port: Port;
  readonly #engine: Engine;
  readonly #vbd: Vbd;
  readonly #plane: DataPlane;
  readonly #frontEnds = new Set<number>();
  readonly #files: HostFiles;
  #closing = false;

  constructor(
    options: DiskOptions,
    engineModule: EngineModule,
    PortClass: PortModule["Port"],
    report: (message: Report) => void,
  ) {
    this.#options = options;
    this.#report = report;
    this.#port = new PortClass({ backend: options.backend, pollMicroseconds: options.pollMicroseconds });
    this.#files = new HostFiles(this.#port, options.direct);
    this.#engine = new Engine(engineModule, options.bitmapCacheBytes);
    this.#port.layout(this.#engine.records.layout);
    this.#vbd = new Vbd(this.#engine.records, (frontEnd) => this.#frontEndClosed(frontEnd));
    this.#plane = new DataPlane(this.#port, this.#engine, this.#vbd, now);
  }

  /**
   * Opens the stack of images and reports it.
   * @throws an error whose message says which file can't be opened, and why.
   */
  open(): void {
    const disk = this.#openStack();
    this.#vbd.open({ sectors: disk.sectors, readOnly: this.#options.readOnly });
    this.#report({ kind: "opened", wakeFd: this.#port.wakeFd, backend: this.#port.backend, disk });
  }

  /** Serves front ends until told to close. `receive` yields the next message of the main thread, if there is one. */
  serve(receive: () => Control | undefined): void {
    while (!this.#closing) {
      this.#plane.turn();
      if (this.#plane.woken) {
        for (let message = receive(); message !== undefined; message = receive()) {
          this.#control(message);
        }
      }
    }
  }

  /**
   * Finishes what is in flight, lets the front ends go, and closes the images.
   * @throws an error when not everything could be made durable.
   */
  close(): void {
    this.#vbd.stopRetrying();
    for (const frontEnd of this.#frontEnds) {
      this.#port.detach(frontEnd);
    }
    const deadline = now() + DRAIN_MS;
    while ((this.#frontEnds.size > 0 || !this.#vbd.idle) && now() < deadline) {
      this.#plane.turn(DRAIN_STEP_MS);
    }
    this.#closeImages();
    this.#files.closeAll();
    this.#port.close();
    this.#report({ kind: "closed" });
  }

  /**
   * Closes the images. What fails may pass, and no metadata is forgotten: so it is tried again.
   * @throws the first error, also when a later attempt succeeds: data may be lost that the kernel could not write.
   */
  #closeImages(): void {
    let failure: unknown;
    for (let attempt = 1; attempt <= CLOSE_ATTEMPTS; attempt++) {
      this.#engine.close();
      this.#runJob();
      try {
        this.#engine.checkClosed();
        break;
      } catch (error) {
        failure ??= error;
        const until = now() + CLOSE_INTERVAL_MS;
        while (attempt < CLOSE_ATTEMPTS && now() < until) this.#plane.turn(until - now());
      }
    }
    if (failure !== undefined) throw failure;
  }

  #openStack(): OpenedDisk {
    const [image] = this.#options.stack;
    const { readOnly } = this.#options;
    const file = this.#files.open(image.name, readOnly ? "read" : "write");
    this.#engine.open({ driver: image.driver, path: image.name, readOnly, ...file });
    this.#runJob();
    return this.#engine.openedDisk();
  }

  #runJob(): void {
    // The first turn only lets the engine take its first step.
    this.#plane.turn(0);
    while (this.#engine.jobRunning) {
      const want = this.#engine.want();
      if (want === null) {
        this.#plane.turn();
      } else {
        this.#engine.provide(this.#files.fulfil(want));
        this.#plane.turn(0);
      }
    }
  }

  #control(message: Control): void {
    switch (message.kind) {
      case "attachNbd":
        this.#attach(message.request, () => this.#port.attachNbd(message.socket, message.received, message));
        break;
      case "attachRing":
        this.#attach(message.request, () => this.#port.attachRing(message.memory, message.kick, message.notify));
        break;
      case "detach":
        // It may have gone by itself in the meantime.
        if (this.#frontEnds.has(message.frontEnd)) {
          this.#port.detach(message.frontEnd);
        }
        break;
      case "grow":
        this.#grow(message.request, message.sizeBytes);
        break;
      case "close":
        this.#closing = true;
        break;
    }
  }

  /** Clients are served meanwhile, but for new ones; the next message is read when it is over. */
  #grow(request: number, sizeBytes: number): void {
    this.#engine.grow(sizeBytes);
    this.#runJob();
    try {
      this.#engine.jobResult();
      this.#vbd.grow(sizeBytes / SECTOR);
      this.#report({ kind: "grown", request });
    } catch (error) {
      const errno = error instanceof JobError ? error.errno : errnoOf(error);
      this.#report({ kind: "refused", request, message: messageOf(error), errno });
    }
  }

  #attach(request: number, attach: () => number): void {
    try {
      const frontEnd = attach();
      this.#frontEnds.add(frontEnd);
      this.#report({ kind: "attached", request, frontEnd });
    } catch (error) {
      this.#report({ kind: "refused", request, message: messageOf(error), errno: errnoOf(error) });
    }
  }

  #frontEndClosed(frontEnd: number): void {
    this.#frontEnds.delete(frontEnd);
    this.#report({ kind: "frontEndClosed", frontEnd });
  }
}
