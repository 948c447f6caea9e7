// Pixels to tokens and back, at every corner. Run by test_modules.py.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  cellAt,
  fit,
  nearestCell,
  parseTokens,
  smoothed,
  tokenAt,
  tokenCount,
  tokenRectangle,
  tokensBetween,
  writeTokens,
} from "../../../explorer/pages/draw/geometry.js";

const LAYOUT = { prefix: 1, grid: [14, 14], suffix: 0 };
const CASES = {
  "a square picture": [{ width: 480, height: 480 }, [0, 0, 1, 1]],
  "the middle of a wide picture": [{ width: 640, height: 480 }, [0.125, 0, 0.875, 1]],
  "the middle of a tall picture": [{ width: 333, height: 500 }, [0, 167 / 1000, 1, 833 / 1000]],
  "resized and cropped within all edges": [{ width: 500, height: 375 }, [0.2, 0.05, 0.8, 0.95]],
  "a squeezed picture": [{ width: 640, height: 213 }, [0, 0, 1, 1]],
};

for (const [name, [shown, box]] of Object.entries(CASES)) {
  test(`${name}: the corners are the corner tokens`, () => {
    const [left, top] = [box[0] * shown.width, box[1] * shown.height];
    const [right, bottom] = [box[2] * shown.width, box[3] * shown.height];
    assert.equal(tokenAt(left + 0.5, top + 0.5, shown, box, LAYOUT), 1);
    assert.equal(tokenAt(right - 0.5, top + 0.5, shown, box, LAYOUT), 14);
    assert.equal(tokenAt(left + 0.5, bottom - 0.5, shown, box, LAYOUT), 1 + 13 * 14);
    assert.equal(tokenAt(right - 0.5, bottom - 0.5, shown, box, LAYOUT), 196);
  });

  test(`${name}: the middle of every token's rectangle is that token`, () => {
    for (let token = 1; token <= 196; token++) {
      const { x, y, width, height } = tokenRectangle(token, shown, box, LAYOUT);
      assert.equal(tokenAt(x + width / 2, y + height / 2, shown, box, LAYOUT), token);
      assert.equal(tokenAt(x + 1e-6, y + 1e-6, shown, box, LAYOUT), token);
      assert.equal(tokenAt(x + width - 1e-6, y + height - 1e-6, shown, box, LAYOUT), token);
    }
  });

  test(`${name}: a display of twice the resolution gives the same tokens`, () => {
    const double = { width: 2 * shown.width, height: 2 * shown.height };
    for (const [x, y] of [
      [10, 10],
      [shown.width / 2, shown.height / 3],
      [shown.width - 1, shown.height - 1],
    ]) {
      assert.deepEqual(cellAt(2 * x, 2 * y, double, box, LAYOUT), cellAt(x, y, shown, box, LAYOUT));
    }
  });
}

test("outside of the seen part there is no token", () => {
  const [shown, box] = CASES["the middle of a wide picture"];
  assert.equal(tokenAt(79, 240, shown, box, LAYOUT), null);
  assert.equal(tokenAt(561, 240, shown, box, LAYOUT), null);
  assert.equal(tokenAt(-1, -1, shown, box, LAYOUT), null);
  assert.deepEqual(nearestCell(-50, 1000, shown, box, LAYOUT), [13, 0]);
});

test("prefix and prompt tokens have no rectangle", () => {
  const layout = { prefix: 2, grid: [2, 3], suffix: 4 };
  const rectangles = Array.from({ length: tokenCount(layout) }, (_, token) =>
    tokenRectangle(token, { width: 6, height: 4 }, [0, 0, 1, 1], layout),
  );
  assert.deepEqual(
    rectangles.map((one) => one !== null),
    [false, false, ...Array(6).fill(true), ...Array(4).fill(false)],
  );
  assert.deepEqual(rectangles[7], { x: 4, y: 2, width: 2, height: 2 });
});

test("a region holds the patches between two cells, whichever was first", () => {
  assert.deepEqual(tokensBetween([1, 2], [0, 1], { prefix: 1, grid: [3, 4] }), [2, 3, 6, 7]);
});

test("tokens in an address are written as runs and read again", () => {
  assert.equal(writeTokens([7, 5, 6, 3]), "3,5-7");
  assert.deepEqual(parseTokens("3,5-7", 197), [3, 5, 6, 7]);
  assert.deepEqual(parseTokens("3,x,195-999999999", 197), [3, 195, 196]);
  assert.deepEqual(parseTokens("", 197), []);
});

test("a smooth map has a cell's value at its middle and the mean between two cells", () => {
  const map = smoothed(Float32Array.from([0, 4, 8, 12]), 2, 2, 6, 6);
  assert.equal(map[1 * 6 + 1], 0);
  assert.equal(map[1 * 6 + 4], 4);
  assert.equal(map[4 * 6 + 4], 12);
  assert.equal(map[0], 0);
  assert.equal(map[35], 12);
  const four = smoothed(Float32Array.from([0, 4]), 1, 2, 5, 1);
  assert.ok(Math.abs(four[2] - 2) < 1e-6);
});

test("a picture fits its place and is not enlarged beyond what is allowed", () => {
  assert.deepEqual(fit(1000, 500, { width: 200, height: 200 }), { width: 200, height: 100 });
  assert.deepEqual(fit(10, 20, { width: 400, height: 400 }, 4), { width: 40, height: 80 });
});
