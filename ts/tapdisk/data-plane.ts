import type { Records } from "../engine/records.ts";
import type { Port } from "./port.ts";
import type { Vbd } from "./vbd.ts";

/** How long nothing must have happened until metadata that nobody waits for is written. */
const IDLE_MS = 1_000;

const COUNT_MASK = 0x7fff;
const COUNT_BITS = 15;
const WOKEN_BIT = 1 << 30;

/** What the data plane needs of an engine. */
export interface DataPlaneEngine {
  readonly records: Records;
  readonly pending: boolean;
  step(completions: number, tdRequests: number): number;
  syncMetadata(): void;
}

/**
 * The loop that moves requests and operations between the port, a vbd and the engine. Its only blocking call is the
 * port's turn. A turn makes a constant number of calls whatever the number of requests, allocates and awaits nothing.
 */
export class DataPlane {
  /** Whether the last turn ended because of a wake-up. */
  woken = false;
  readonly #port: Pick<Port, "turn">;
  readonly #engine: DataPlaneEngine;
  readonly #vbd: Vbd;
  readonly #now: () => number;
  /** Records in the operations and responses areas, for the port's next turn. */
  #operations = 0;
  #responses = 0;
  /** When something happened last; infinite once metadata was written since then. */
  #lastActive: number;

  /** `now` yields milliseconds of a clock that doesn't jump. */
  constructor(port: Pick<Port, "turn">, engine: DataPlaneEngine, vbd: Vbd, now: () => number) {
    this.#port = port;
    this.#engine = engine;
    this.#vbd = vbd;
    this.#now = now;
    this.#lastActive = now();
  }

  /** One turn; waits for something to happen, but not longer than `limit` milliseconds. */
  turn(limit = Number.POSITIVE_INFINITY): void {
    const engine = this.#engine;
    const vbd = this.#vbd;
    const timeout = this.#timeout(limit);
    const outcome = this.#port.turn(engine.records.bytes, this.#operations, this.#responses, timeout);
    const completions = outcome & COUNT_MASK;
    const requests = (outcome >>> COUNT_BITS) & COUNT_MASK;
    this.woken = (outcome & WOKEN_BIT) !== 0;

    const now = this.#now();
    vbd.pullRequests(requests, now);
    const tdRequests = vbd.issueRequests(now);
    if (completions > 0 || tdRequests > 0) {
      this.#lastActive = now;
    } else if (now - this.#lastActive >= IDLE_MS) {
      this.#lastActive = Number.POSITIVE_INFINITY;
      engine.syncMetadata();
    }
    const step = engine.step(completions, tdRequests);
    this.#operations = step & COUNT_MASK;
    vbd.completeTdRequests(step >>> COUNT_BITS, now);
    this.#responses = vbd.kick();
  }

  /** Milliseconds that the port may wait; negative: until something happens. */
  #timeout(limit: number): number {
    if (this.#engine.pending) {
      return 0;
    }
    const now = this.#now();
    const wait = Math.min(limit, this.#vbd.timeout(now), Math.max(0, this.#lastActive + IDLE_MS - now));
    return wait === Number.POSITIVE_INFINITY ? -1 : Math.ceil(wait);
  }
}
