import { createRequire } from "node:module";
import { builtFile } from "../engine/built.ts";
import type { Layout } from "../engine/records.ts";

/** The back ends of the port, and the choice of the best one that the kernel permits. */
export const backends = ["auto", "uring", "threads"] as const;

/** What executes file operations: io_uring, a thread pool, or whichever is possible. */
export type Backend = (typeof backends)[number];

/** Settings of a port. */
export interface PortOptions {
  readonly backend: Backend;
  /** Operations in flight. */
  readonly depth?: number;
  /** Bytes for the data of requests that come by socket. */
  readonly poolBytes?: number;
  /** How long to look for work before sleeping. */
  readonly pollMicroseconds?: number;
}

/** A file that a port has open. */
export interface OpenFile {
  /** Its number in operations. */
  readonly file: number;
  /** Bytes. */
  readonly size: number;
  readonly blockDevice: boolean;
  /** Bytes that offsets, lengths and buffers of operations have to be multiples of. */
  readonly alignment: number;
}

/** The native port: files, rings and sockets of one data plane. Only the thread that made it may use it. */
export interface Port {
  readonly backend: string;
  /** What {@link PortModule.wake} takes to end this port's wait, from any thread. */
  readonly wakeFd: number;
  openFile(path: string, options: { write: boolean; direct: boolean; lock: boolean; create?: boolean }): OpenFile;
  closeFile(file: number): void;
  /** Takes the three descriptors over, also when it throws. Returns the front end's number. */
  attachRing(memoryFd: number, kickFd: number, notifyFd: number): number;
  /** Takes the socket over, also when it throws; `received` is what it sent already. Returns the front end's number. */
  attachNbd(socketFd: number, received: Uint8Array, options: { structuredReplies: boolean; readOnly: boolean }): number;
  detach(frontEnd: number): void;
  layout(layout: Layout): void;
  /**
   * Carries out operations and sends responses, then waits for completions, requests or a wake-up, at most `timeoutMs`
   * milliseconds (negative: without a limit).
   * @returns completions | requests << 15 | woken << 30
   */
  turn(memory: Uint8Array, operations: number, responses: number, timeoutMs: number): number;
  close(): void;
}

/** The native module. */
export interface PortModule {
  readonly Port: new (options: PortOptions) => Port;
  wake(wakeFd: number): void;
  duplicateFd(fd: number): number;
  /** Receives the descriptors of a ring, which its client sends over a Unix socket. */
  receiveRing(socketFd: number): Promise<{ memory: number; kick: number; notify: number }>;
}

let loaded: PortModule | undefined;

/** Loads the native module. */
export function portModule(): PortModule {
  loaded ??= createRequire(import.meta.url)(builtFile("port.node")) as PortModule;
  return loaded;
}
