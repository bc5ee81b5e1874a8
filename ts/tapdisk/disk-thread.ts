import { closeSync } from "node:fs";
import type { Worker } from "node:worker_threads";
import type { OpenedDisk } from "../engine/engine.ts";
import { compiledEngine } from "../engine/load-node.ts";
import { type Control, type DiskOptions, type Open, type Report, reportSchema } from "./messages.ts";
import type { PortModule } from "./port.ts";
import { type StartedThread, takeThread } from "./threads.ts";

/** What the main thread needs of the native module to talk to a worker. */
export type ThreadPort = Pick<PortModule, "duplicateFd" | "wake">;

/** A front end, or a size, that the data plane refused; the positive `errno` says why. */
export class RefusedError extends Error {
  override readonly name = "RefusedError";
  readonly errno: number;

  constructor(message: string, errno: number) {
    super(message);
    this.errno = errno;
  }
}

const SECTOR = 512;

interface Growing {
  readonly sizeBytes: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

interface Attaching {
  readonly resolve: (frontEnd: number) => void;
  readonly reject: (error: Error) => void;
  readonly onClosed: () => void;
}

// A control message before its request got a number.
type Attach =
  | Omit<Extract<Control, { kind: "attachNbd" }>, "request">
  | Omit<Extract<Control, { kind: "attachRing" }>, "request">;

function diskClosed(): Error {
  return new Error("the disk is closed");
}

/** The main thread's end of a worker that runs the data plane of one disk. */
export class DiskThread {
  /** What executes file operations. */
  readonly backend: string;
  /** Settles when the worker is gone: resolves after {@link close}, rejects when it died of an error. */
  readonly ended: Promise<void>;
  readonly #worker: Worker;
  readonly #port: ThreadPort;
  /** A duplicate, so that it stays what it is whatever the worker does. */
  readonly #wakeFd: number;
  readonly #attaching = new Map<number, Attaching>();
  readonly #frontEnds = new Map<number, () => void>();
  readonly #growing = new Map<number, Growing>();
  #disk: OpenedDisk;
  #requests = 0;
  #over = false;

  /**
   * Opens a disk in a thread; another than a new one only in tests.
   * @throws an error that says why the disk can't be opened.
   */
  static async open(port: ThreadPort, disk: DiskOptions, thread: StartedThread = takeThread()): Promise<DiskThread> {
    const { worker } = thread;
    worker.postMessage({ kind: "open", disk, engine: compiledEngine() } satisfies Open);
    const opened = reportSchema.parse(await thread.firstMessage);
    if (opened.kind !== "opened") {
      throw new Error(opened.kind === "failed" ? opened.message : `the worker began with '${opened.kind}'`);
    }
    return new DiskThread(port, worker, opened);
  }

  private constructor(port: ThreadPort, worker: Worker, opened: Extract<Report, { kind: "opened" }>) {
    this.#port = port;
    this.#worker = worker;
    this.#disk = opened.disk;
    this.backend = opened.backend;
    this.#wakeFd = port.duplicateFd(opened.wakeFd);
    this.ended = new Promise((resolve, reject) => {
      let closed = false;
      worker.on("message", (message) => {
        const report = reportSchema.parse(message);
        closed ||= report.kind === "closed";
        if (report.kind === "failed") {
          reject(new Error(report.message));
        }
        this.#take(report);
      });
      worker.on("error", reject);
      worker.on("exit", (code) => {
        this.#over = true;
        closeSync(this.#wakeFd);
        this.#dropAll();
        if (closed) {
          resolve();
        } else {
          reject(new Error(`the disk's thread ended with code ${code}`));
        }
      });
    });
    // Whoever awaits it sees the error; nobody has to.
    this.ended.catch(() => {});
  }

  /** What was opened, as large as it is now. */
  get disk(): OpenedDisk {
    return this.#disk;
  }

  /**
   * Makes the disk larger, while it is in use. Clients that are connected go on; those that come later see the new size.
   * @throws RefusedError when the disk can't have that size; it has its old one then
   */
  grow(sizeBytes: number): Promise<void> {
    if (this.#over) return Promise.reject(diskClosed());
    const request = this.#requests++;
    return new Promise((resolve, reject) => {
      this.#growing.set(request, { sizeBytes, resolve, reject });
      this.#send({ kind: "grow", request, sizeBytes });
    });
  }

  /**
   * Serves an NBD connection that is past its handshake. The data plane takes `socket`, a descriptor, over.
   * `onClosed` is called when the connection has ended.
   * @returns the front end's number
   * @throws RefusedError
   */
  attachNbd(connection: Omit<Extract<Attach, { kind: "attachNbd" }>, "kind">, onClosed: () => void): Promise<number> {
    return this.#attach({ kind: "attachNbd", ...connection }, onClosed);
  }

  /**
   * Serves a ring. The data plane takes its descriptors over. `onClosed` is called when the front end has ended.
   * @returns the front end's number
   * @throws RefusedError
   */
  attachRing(ring: { memory: number; kick: number; notify: number }, onClosed: () => void): Promise<number> {
    return this.#attach({ kind: "attachRing", ...ring }, onClosed);
  }

  /** Lets a front end finish what it has in flight, and go. */
  detach(frontEnd: number): void {
    if (this.#frontEnds.has(frontEnd)) {
      this.#send({ kind: "detach", frontEnd });
    }
  }

  /**
   * Lets all front ends go, makes everything durable and closes the disk.
   * @throws what kept the disk from being closed properly.
   */
  async close(): Promise<void> {
    if (!this.#over) this.#send({ kind: "close" });
    await this.ended;
  }

  #attach(message: Attach, onClosed: () => void): Promise<number> {
    if (this.#over) return Promise.reject(diskClosed());
    const request = this.#requests++;
    return new Promise((resolve, reject) => {
      this.#attaching.set(request, { resolve, reject, onClosed });
      this.#send({ ...message, request });
    });
  }

  #send(message: Control): void {
    this.#worker.postMessage(message);
    this.#port.wake(this.#wakeFd);
  }

  #take(report: Report): void {
    switch (report.kind) {
      case "attached": {
        const attaching = this.#attaching.get(report.request);
        this.#attaching.delete(report.request);
        this.#frontEnds.set(report.frontEnd, attaching?.onClosed ?? (() => {}));
        attaching?.resolve(report.frontEnd);
        break;
      }
      case "grown": {
        const growing = this.#growing.get(report.request);
        this.#growing.delete(report.request);
        if (growing !== undefined) {
          const { sizeBytes } = growing;
          this.#disk = { ...this.#disk, sizeBytes, sectors: sizeBytes / SECTOR };
          growing.resolve();
        }
        break;
      }
      case "refused":
        for (const waiting of [this.#attaching, this.#growing]) {
          waiting.get(report.request)?.reject(new RefusedError(report.message, report.errno));
          waiting.delete(report.request);
        }
        break;
      case "frontEndClosed": {
        const onClosed = this.#frontEnds.get(report.frontEnd);
        this.#frontEnds.delete(report.frontEnd);
        onClosed?.();
        break;
      }
      case "opened":
      case "failed":
      case "closed":
        break;
    }
  }

  #dropAll(): void {
    for (const attaching of this.#attaching.values()) {
      attaching.reject(diskClosed());
    }
    this.#attaching.clear();
    for (const growing of this.#growing.values()) {
      growing.reject(diskClosed());
    }
    this.#growing.clear();
    for (const onClosed of this.#frontEnds.values()) {
      onClosed();
    }
    this.#frontEnds.clear();
  }
}
